"""The distance of the aggregate posterior, q(z) = E_x q(z|x), from the prior N(0, I).

Samples are drawn from that prior. The distance is the unbiased squared maximum mean discrepancy
(Gretton et al., 2012, JMLR 13, eq. 3). Its kernel exp(-|a - b|^2 / (2 latent_size)) has the prior's
width. For scale, it is compared with the distances of as many draws from N(0, I) itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from latentd.training.model import POINT_LOG_VAR

MAX_ROWS: Final = 1000  # upper limit: the distance's time and memory grow quadratically
NULLS: Final = 40  # pairs of N(0, I) sample sets to compare the distance with


@dataclass(frozen=True)
class AggregatePosterior:
    """Measurements on one z for each row."""

    rows: int
    norm_of_mean: float  # |E z|; 0 for N(0, I)
    mean_norm: float  # E |z|, as a multiple of N(0, I)'s
    active_variance: float  # mean over active units of Var z; 1 for N(0, I)
    mmd: float  # squared, unbiased: may fall below 0
    null_mean: float  # mean MMD of N(0, I) against itself
    null_high: float  # its 95th percentile
    mutual_information: float  # I(x; z) in nats; infinite if z is a point
    mutual_information_limit: float  # log(rows): the estimate cannot exceed it

    @property
    def words(self) -> str:
        """The distance in words."""
        if self.mmd <= self.null_high:
            return "indistinguishable from N(0, I)"
        return f"not N(0, I): {self.mmd / self.null_high:,.1f} times what chance allows"


@torch.inference_mode()
def measure_aggregate(
    mean: Tensor, log_var: Tensor, active: Tensor, seed: int
) -> AggregatePosterior:
    """mean, log_var: float32 (rows, latent_size) of q(z|x), at least two rows. Only the first
    MAX_ROWS are used. active: bool (latent_size,)."""
    mean, log_var = mean[:MAX_ROWS], log_var[:MAX_ROWS]
    noise = torch.Generator().manual_seed(seed)
    points = bool((log_var <= POINT_LOG_VAR).all())
    rows, latent_size = mean.shape
    z = mean + (0.5 * log_var).exp() * torch.randn(mean.shape, generator=noise)
    prior = torch.randn(z.shape, generator=noise)
    null = torch.tensor(
        # Both sides are fresh draws. With one fixed set, the 95th percentile would depend on that
        # set and could be below 0.
        [mmd(*torch.randn((2, *z.shape), generator=noise)) for _ in range(NULLS)],
        dtype=torch.float64,
    )
    # E |z| of N(0, I): the mean of a chi distribution.
    chi = math.sqrt(2) * math.exp(math.lgamma((latent_size + 1) / 2) - math.lgamma(latent_size / 2))
    return AggregatePosterior(
        rows=rows,
        norm_of_mean=float(z.mean(0).norm()),
        mean_norm=float(z.norm(dim=1).mean()) / chi,
        active_variance=float(z[:, active].var(0).mean()) if active.any() else math.nan,
        mmd=mmd(z, prior),
        null_mean=float(null.mean()),
        null_high=float(null.quantile(0.95)),
        mutual_information=math.inf if points else mutual_information(z, mean, log_var),
        mutual_information_limit=math.log(rows),
    )


def mmd(a: Tensor, b: Tensor) -> float:
    """The unbiased squared MMD between two sets of rows. 0 in expectation for one distribution."""
    return float(_similar(a, a, True) + _similar(b, b, True) - 2 * _similar(a, b, False))


def _similar(a: Tensor, b: Tensor, same: bool) -> Tensor:
    """The kernel's mean over pairs. `same` leaves out the pairs of a row with itself."""
    a, b = a.double(), b.double()
    # |a - b|^2 is multiplied out; float64 keeps enough digits.
    squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    kernel = squares.div_(-2 * a.shape[1]).exp_()
    if not same:
        return kernel.mean()
    return (kernel.sum() - kernel.trace()) / (len(a) * (len(a) - 1))


def mutual_information(z: Tensor, mean: Tensor, log_var: Tensor) -> float:
    """I(x; z) = E log q(z|x) - log q(z) in nats. q(z) is the mean over these rows.

    Hoffman & Johnson, 2016, "ELBO surgery". It cannot exceed the logarithm of the number of rows.
    """
    precision = (-log_var).exp()
    # log q(z_i|x_j) for all pairs. The square is multiplied out into two matrix products.
    z, mean, log_var, precision = (t.double() for t in (z, mean, log_var, precision))
    squares = (
        z.square() @ precision.T - 2 * z @ (mean * precision).T + (mean.square() * precision).sum(1)
    )
    log_q = -0.5 * (squares + log_var.sum(1))  # without the constant, which cancels
    return float((log_q.diagonal() - log_q.logsumexp(1)).mean() + math.log(len(z)))
