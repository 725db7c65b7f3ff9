"""The likelihoods of images, and of other rows of values in [0, 1]: Config.likelihood's choices.

To add one, write a class here, add it to `likelihoods.LIKELIHOODS`, and add its name to
Config.likelihood's choices. The class also makes its graph and its part of the manifest.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from latentd.training.likelihoods.likelihood import PixelLikelihood


class Bernoulli(PixelLikelihood):
    """params: one logit for each pixel. For grey x, -log p is a cross-entropy, not a likelihood."""

    outputs, parameters, binary = 1, ("logit",), True

    def params(self, raw: Tensor) -> Tensor:
        return raw

    def around(self, raw: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return mean[:, None].clamp(0.01, 0.99).logit() + raw

    def terms(self, x: Tensor, params: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(params[:, 0], x, reduction="none")

    def mean(self, params: Tensor) -> Tensor:
        return params[:, 0].sigmoid()


class Gaussian(PixelLikelihood):
    """params: mean and log standard deviation of each pixel. p is a density, so -log p may be
    negative.

    min_std: the minimum standard deviation. Without it, pixels that never change (a black border)
    reach unbounded density and dominate the rest. fixed_std: the standard deviation of every
    pixel; the network then outputs only means. shared: the same, and the model learns the standard
    deviation of every pixel (Rybkin et al., 2021, arXiv:2006.13202). No pixel can then trade
    sharpness for a larger deviation of its own.
    """

    parameters, bounded, density = ("mean", "log_std"), False, True

    def __init__(self, min_std: float, fixed_std: float | None, shared: bool = False) -> None:
        self.log_floor = math.log(min_std)
        self.log_fixed_std = None if fixed_std is None else math.log(fixed_std)
        self.shared = shared and fixed_std is None
        self.outputs = 1 if fixed_std or shared else 2

    def params(self, raw: Tensor) -> Tensor:
        if self.log_fixed_std is not None:
            return torch.cat((raw, torch.full_like(raw, self.log_fixed_std)), dim=1)
        return _with_log_floor(raw, self.log_floor)

    def around(self, raw: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return torch.cat((mean[:, None] + std * raw[:, :1], std.log() + raw[:, 1:]), dim=1)

    def terms(self, x: Tensor, params: Tensor) -> Tensor:
        mean, log_std = params[:, 0], params[:, 1]
        squares = ((x - mean) * (-log_std).exp()).square()
        return 0.5 * squares + log_std + 0.5 * math.log(2 * math.pi)

    def mean(self, params: Tensor) -> Tensor:
        return params[:, 0].clamp(0, 1)


class DiscretizedLogistic(PixelLikelihood):
    """params: mean and log scale of a logistic distribution for each pixel. Levels are 1/255 apart.
    A byte's probability is the mass between the midpoints to its neighbors; 0 and 255 include the
    tails. p is a probability, so -log p is never negative. Kingma et al. (2016), arXiv:1606.04934;
    Salimans et al. (2017), arXiv:1701.05517.
    """

    outputs, parameters = 2, ("mean", "log_scale")
    log_floor = -7.0  # log scale: a quarter of a level, where a byte is almost certain

    def params(self, raw: Tensor) -> Tensor:
        return _with_log_floor(raw, self.log_floor)

    def around(self, raw: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        log_scale = std.log() + 0.5 * math.log(3) - math.log(math.pi)  # variance: (pi scale)^2 / 3
        return torch.cat((mean[:, None] + std * raw[:, :1], log_scale + raw[:, 1:]), dim=1)

    def terms(self, x: Tensor, params: Tensor) -> Tensor:
        mean, sharpness = params[:, 0], (-params[:, 1]).exp()
        above = (x - mean + 1 / 510) * sharpness
        below = (x - mean - 1 / 510) * sharpness
        # sigmoid(above) - sigmoid(below), factored to avoid cancellation.
        inside = F.softplus(-above) + F.softplus(below) - (-torch.expm1(-sharpness / 255)).log()
        tails = torch.where(x == 0, F.softplus(-above), F.softplus(below))
        return torch.where((x == 0) | (x == 1), tails, inside)

    def mean(self, params: Tensor) -> Tensor:
        """The logistic's mean. It equals the bytes' mean except for the effect of the cut tails."""
        return params[:, 0].clamp(0, 1)


def _with_log_floor(raw: Tensor, log_floor: float) -> Tensor:
    """Unchanged means, and log widths bent so that none is below `log_floor`."""
    mean, log_width = raw.chunk(2, dim=1)
    return torch.cat((mean, log_floor + F.softplus(log_width - log_floor)), dim=1)
