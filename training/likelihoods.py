"""p(x|z): what the decoder's numbers mean, how well they explain x, what they look like.

Every `params` here is float32 (rows, parameters, *shape), and every x is float32 (rows, *shape)
scaled to [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from latentd.training.config import Config


class Likelihood(Protocol):
    """What a likelihood offers the model."""

    outputs: int  # of the network, for each element of x
    parameters: int  # likewise

    def params(self, raw: Tensor) -> Tensor:
        """The network's unbounded outputs (rows, outputs, *shape) as parameters."""

    def nll(self, x: Tensor, params: Tensor) -> Tensor:
        """-log p(x|z) in nats, summed over each row: (rows,)."""

    def mean(self, params: Tensor) -> Tensor:
        """E[x|z] in [0, 1]: (rows, *shape)."""


class Bernoulli:
    """params: one logit for each pixel. For grey x, -log p is a cross-entropy, no likelihood."""

    outputs = parameters = 1

    def params(self, raw: Tensor) -> Tensor:
        return raw

    def nll(self, x: Tensor, params: Tensor) -> Tensor:
        logits = params[:, 0]
        return F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        return params[:, 0].sigmoid()


class Gaussian:
    """params: mean and log standard deviation of each pixel. -log p is of a density, so it may
    be negative.

    min_std: the floor of the standard deviation. Without one, pixels that never change (a black
    border) earn unbounded density and drown the rest. fixed_std: the standard deviation itself,
    for every pixel; the network then gives means only.
    """

    parameters = 2

    def __init__(self, min_std: float, fixed_std: float | None) -> None:
        self.log_floor = math.log(min_std)
        self.log_fixed_std = None if fixed_std is None else math.log(fixed_std)
        self.outputs = 1 if fixed_std else 2

    def params(self, raw: Tensor) -> Tensor:
        if self.log_fixed_std is not None:
            return torch.cat((raw, torch.full_like(raw, self.log_fixed_std)), dim=1)
        return _with_log_floor(raw, self.log_floor)

    def nll(self, x: Tensor, params: Tensor) -> Tensor:
        mean, log_std = params[:, 0], params[:, 1]
        squares = ((x - mean) * (-log_std).exp()).square()
        return (0.5 * squares + log_std + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        return params[:, 0].clamp(0, 1)


class DiscretizedLogistic:
    """params: mean and log scale of a logistic distribution for each pixel, whose mass between the
    middles of neighboring levels, 1/255 apart, is the byte's; 0 and 255 have the tails. -log p is
    of a probability, so it is never negative. Kingma et al. (2016), arXiv:1606.04934; Salimans et
    al. (2017), arXiv:1701.05517.
    """

    outputs = parameters = 2
    log_floor = -7.0  # log scale: a quarter of a level, where a byte is as good as certain

    def params(self, raw: Tensor) -> Tensor:
        return _with_log_floor(raw, self.log_floor)

    def nll(self, x: Tensor, params: Tensor) -> Tensor:
        mean, sharpness = params[:, 0], (-params[:, 1]).exp()
        above = (x - mean + 1 / 510) * sharpness
        below = (x - mean - 1 / 510) * sharpness
        # sigmoid(above) - sigmoid(below), factored so that nothing cancels.
        inside = F.softplus(-above) + F.softplus(below) - (-torch.expm1(-sharpness / 255)).log()
        tails = torch.where(x == 0, F.softplus(-above), F.softplus(below))
        return torch.where((x == 0) | (x == 1), tails, inside).flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        """The logistic's own mean: that of the bytes, but for what its tails are cut by."""
        return params[:, 0].clamp(0, 1)


def _with_log_floor(raw: Tensor, log_floor: float) -> Tensor:
    """Means as they are, log widths bent so that none is below `least`."""
    mean, log_width = raw.chunk(2, dim=1)
    return torch.cat((mean, log_floor + F.softplus(log_width - log_floor)), dim=1)


LIKELIHOODS: Final[dict[str, Callable[[Config], Likelihood]]] = {
    "bernoulli": lambda config: Bernoulli(),
    "gaussian": lambda config: Gaussian(config.min_std, config.fixed_std),
    "discretized-logistic": lambda config: DiscretizedLogistic(),
}
