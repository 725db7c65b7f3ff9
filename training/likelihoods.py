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

from training.config import Config


class Likelihood(Protocol):
    """What a likelihood offers the model."""

    parameters: int  # for each element of x

    def params(self, raw: Tensor) -> Tensor:
        """The network's unbounded output as parameters, of the same shape."""

    def nll(self, x: Tensor, params: Tensor) -> Tensor:
        """-log p(x|z) in nats, summed over each row: (rows,)."""

    def mean(self, params: Tensor) -> Tensor:
        """E[x|z] in [0, 1]: (rows, *shape)."""


class Bernoulli:
    """params: one logit for each pixel. For grey x, -log p is a cross-entropy, no likelihood."""

    parameters = 1

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

    least_std: the floor of the standard deviation. Without one, pixels that never change (a black
    border) earn unbounded density and drown the rest.
    """

    parameters = 2

    def __init__(self, least_std: float) -> None:
        self.least = math.log(least_std)

    def params(self, raw: Tensor) -> Tensor:
        mean, log_std = raw.chunk(2, dim=1)
        return torch.cat((mean, self.least + F.softplus(log_std - self.least)), dim=1)

    def nll(self, x: Tensor, params: Tensor) -> Tensor:
        mean, log_std = params[:, 0], params[:, 1]
        squares = ((x - mean) * (-log_std).exp()).square()
        return (0.5 * squares + log_std + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)

    def mean(self, params: Tensor) -> Tensor:
        return params[:, 0].clamp(0, 1)


LIKELIHOODS: Final[dict[str, Callable[[Config], Likelihood]]] = {
    "bernoulli": lambda config: Bernoulli(),
    "gaussian": lambda config: Gaussian(config.least_std),
}
