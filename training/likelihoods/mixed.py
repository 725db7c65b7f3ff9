"""p(x|z) of rows with columns: normal for each numeric column, categorical for each other one, all
in one row. The columns are independent given z.

Numeric columns are in the data's own units, also in `params`. So -log p is that of a density in
these units, and the logarithm of each column's scale is part of it.

There is no Student-t. z and the learned scales already give heavy tails, and a distribution that
expects outliers would score them as usual, which an anomaly must not be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from latentd.columns import Column
from latentd.training.config import Config
from latentd.training.likelihoods.features import Features
from latentd.training.likelihoods.likelihood import IndependentLikelihood
from latentd.training.likelihoods.normal_quantile import normal_quantile

_NONE: Final = -1e4  # a logit of no probability; float16 has it
_LOG_STD: Final = -0.7  # where a learned standard deviation starts: half of the column's own
_SMALLEST: Final = 2.0**-24  # of a quantile, and of its distance to 1: both are finite numbers
_SURE: Final = 1e-3  # the least margin of a choice that rounding cannot change
_TRIES: Final = 64  # other choices that are drawn for an unsure one


class MixedLikelihood(IndependentLikelihood):
    """Of rows (rows, columns). It also makes the input of the encoder.

    The nets see features: numeric columns standardized, categorical ones one-hot. They give as many
    numbers, once for means and logits and, if --std is pixel, once more for the standard deviations
    of numeric columns. params: (rows, parameters, columns). Of a numeric column its mean and log
    standard deviation; of a categorical one the log probability of each level; then zeros.
    """

    bounded = binary = False

    def __init__(self, config: Config, columns: Sequence[Column]) -> None:
        self.features = Features(columns)
        self.density = any(not column.is_categorical for column in columns)
        self.outputs = 2 if config.std == "pixel" and config.fixed_std is None else 1
        count = len(self.features.numbers)
        of_any = tuple(f"p{number}" for number in range(count))
        self.parameters = of_any if self.features.has_categorical else ("mean", "log_std")
        # The net's standard deviations, or the model's own: of each feature, or one for all.
        self.shared = config.fixed_std is None and self.outputs == 1
        own = self.features.width if config.std == "column" else 1
        self.log_std_start = torch.full((own,), _LOG_STD)
        self.log_floor = math.log(config.least_column_std)
        self.log_fixed_std = None if config.fixed_std is None else math.log(config.fixed_std)

    def inputs(self, x: Tensor) -> Tensor:
        """Rows (rows, columns) -> what the encoder sees: (rows, width)."""
        features = self.features
        standardized = ((x - features.mean) / features.std).index_select(1, features.source)
        numbers = x.index_select(1, features.source)
        return torch.where(features.level < 0, standardized, (numbers == features.level).float())

    def params(self, raw: Tensor) -> Tensor:
        """The nets' outputs (rows, outputs, width), and the model's own log standard deviations
        (rows, 1, width) after them if `shared`, -> parameters."""
        features = self.features
        first = raw[:, 0]
        mean = features.by_column(first)[:, 0] * features.std + features.mean
        log_std = self._log_std(raw) + features.log_std
        if not features.has_categorical:
            return torch.stack((mean, log_std), dim=1)
        logits = torch.where(features.used, features.by_column(first), _NONE)
        log_p = torch.where(features.used, logits.log_softmax(1), 0.0)
        rest = torch.zeros_like(log_p[:, 2:])
        of_numeric = torch.cat((mean[:, None], log_std[:, None], rest), dim=1)
        return torch.where(features.is_numeric, of_numeric, log_p)

    def _log_std(self, raw: Tensor) -> Tensor:
        """In units of each column's standard deviation: (rows, columns)."""
        features = self.features
        if self.log_fixed_std is not None:
            return torch.full_like(features.by_column(raw[:, 0])[:, 0], self.log_fixed_std)
        log_std = features.by_column(raw[:, 1])[:, 0]
        return self.log_floor + F.softplus(log_std - self.log_floor)

    def terms(self, x: Tensor, params: Tensor) -> Tensor:
        """-log p(x|z) of each column, in nats: (rows, columns)."""
        features = self.features
        # A categorical column has no mean: numbers of it must not reach exp().
        log_std = torch.where(features.is_numeric, params[:, 1], 0.0)
        mean = torch.where(features.is_numeric, params[:, 0], x)
        squares = ((x - mean) * (-log_std).exp()).square()
        gaussian = 0.5 * squares + log_std + 0.5 * math.log(2 * math.pi)
        if not features.has_categorical:
            return gaussian
        chosen = x[:, None] == features.numbers
        categorical = -torch.where(chosen, params, 0.0).sum(1)
        return torch.where(features.is_numeric, gaussian, categorical)

    def mean(self, params: Tensor) -> Tensor:
        """The mean of each numeric column, the likeliest level of each categorical one."""
        features = self.features
        if not features.has_categorical:
            return params[:, 0]
        log_p = torch.where(features.used, params, _NONE)
        best = log_p == log_p.amax(1, keepdim=True)
        first = torch.where(best, features.numbers, features.numbers[-1]).amin(1)
        return torch.where(features.is_numeric, params[:, 0], first)

    def draw(self, params: Tensor, choices: Tensor) -> Tensor:
        """x for choices (rows, columns): below 0 as `mean` gives it, from 0 to 1 the quantile of
        p(x|z) at that number, which draws x if the number is uniform."""
        features = self.features
        uniform = choices.clamp(_SMALLEST, 1 - _SMALLEST)
        drawn = params[:, 0] + params[:, 1].clamp(max=80).exp() * normal_quantile(uniform)
        if features.has_categorical:
            below = torch.where(features.used, params, _NONE).exp().cumsum(1) <= uniform[:, None]
            number = torch.minimum(below.float().sum(1), features.last)
            drawn = torch.where(features.is_numeric, drawn, number)
        return torch.where(choices < 0, self.mean(params), drawn)

    def margin(self, params: Tensor, choices: Tensor) -> Tensor:
        """How near another level was, in probabilities: (rows, columns), 1 for numeric columns.
        With other rounding, what was near may be chosen."""
        features = self.features
        if not features.has_categorical:
            return torch.ones_like(choices)
        p = torch.where(features.used, params, _NONE).exp()
        ends = (p.cumsum(1) - choices.clamp(min=0)[:, None]).abs().amin(1)
        best = p.topk(2, dim=1).values
        margin = torch.where(choices < 0, best[:, 0] - best[:, 1], ends)
        return torch.where(features.is_numeric, 1.0, margin)

    def sure_choices(self, params: Tensor, choices: Tensor, seed: int) -> Tensor:
        """The choices, but others where another level was near: rounding decides nothing."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(_TRIES):
            unsure = self.margin(params, choices) < _SURE
            drawn = torch.rand(choices.shape, generator=generator)
            choices = torch.where(unsure, drawn, choices)
        return choices
