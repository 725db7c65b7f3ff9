"""-ELBO and the importance-weighted NLL of rows.

    log p(x) >= E log 1/S sum_s w_s,   w_s = p(x|z_s) p(z_s) / q(z_s|x),   z_s ~ q(z|x)

Burda, Grosse & Salakhutdinov, 2016, arXiv:1509.00519. S = 1 is the ELBO, and the bound tightens as
S grows. Papers report S = 5000. A row's draws depend only on the seed and the row's number. So
neither the batch nor the number of rows changes its estimate beyond rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from latentd.training.dataset import max_batch_rows
from latentd.training.errors import RunFailed
from latentd.training.model import Model, gaussian_kl

AT_ONCE: Final = 1 << 12
"""The maximum number of latents in one batch. It is large so that matrix products take the time."""


@dataclass(frozen=True)
class LikelihoodEstimate:
    """The estimate for each row, in nats: float64 (rows,) on the CPU."""

    samples: int
    distortion: Tensor  # -log p(x|z), averaged over the draws
    rate: Tensor  # KL(q(z|x) || p(z)), exact
    nll: Tensor  # -log of the mean importance weight
    effective: Tensor  # effective number of the `samples`: (sum w)^2 / sum w^2

    @property
    def negative_elbo(self) -> Tensor:
        """distortion + rate."""
        return self.distortion + self.rate

    def __len__(self) -> int:
        return len(self.nll)


class _Weights:
    """Running sums of weights, given as logarithms. Sums are multiples of the largest so far."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.largest = torch.full((rows,), -math.inf, dtype=torch.float64, device=device)
        self.sum = torch.zeros_like(self.largest)
        self.squares = torch.zeros_like(self.largest)

    def add(self, log_w: Tensor) -> None:
        """log_w: (rows, draws)."""
        log_w = log_w.double()
        largest = torch.maximum(self.largest, log_w.amax(1))
        shrunk = (self.largest - largest).exp()
        w = (log_w - largest[:, None]).exp()
        self.sum = self.sum * shrunk + w.sum(1)
        self.squares = self.squares * shrunk.square() + w.square().sum(1)
        self.largest = largest


@torch.inference_mode()
def estimate_likelihood(
    model: Model,
    x: Tensor,
    samples: int,
    seed: int,
    at_once: int = AT_ONCE,
    label: str | None = None,
) -> LikelihoodEstimate:
    """The estimate for each target row: float32 (rows, *shape), on the model's device.

    at_once: latents in one batch; bounds memory for any `samples`. label: the progress bar's title;
    None hides the bar. Raises RunFailed if the model's outputs are not finite.
    """
    at_once = max_batch_rows(model.output_shape, at_once)
    block = max(1, at_once // samples)
    # Allocated before the loop. Small tensors kept between large ones would fragment memory: the
    # holes would fit no large tensor and waste some MB per row.
    estimates = torch.empty(4, len(x), dtype=torch.float64)
    with tqdm(
        total=len(x), desc=label, unit="row", disable=None if label else True, mininterval=0.5
    ) as bar:
        for first in range(0, len(x), block):
            rows = slice(first, min(first + block, len(x)))
            for row, part in enumerate(_block(model, x[rows], first, samples, seed, at_once)):
                estimates[row, rows] = part
            bar.update(rows.stop - rows.start)
    distortion, rate, nll, effective = estimates
    finite = torch.isfinite(nll) & torch.isfinite(distortion)
    if not finite.all():
        raise RunFailed(
            f"The model's likelihood is not finite on row {int(finite.logical_not().nonzero()[0])}"
            " of those evaluated. Retrain with a smaller --learning-rate."
        )
    return LikelihoodEstimate(samples, distortion, rate, nll, effective)


def _block(
    model: Model, x: Tensor, first: int, samples: int, seed: int, at_once: int
) -> tuple[Tensor, ...]:
    """distortion, rate, nll and effective of one batch of rows. Each row is encoded once."""
    mean, log_var = (latents.flatten(1) for latents in model.encode(x))
    std, log_std = (0.5 * log_var).exp(), 0.5 * log_var.sum(1)
    rows, latent_size = mean.shape
    draws = [_draws(seed, first + row) for row in range(rows)]
    weights = _Weights(rows, x.device)
    distortion = torch.zeros(rows, dtype=torch.float64, device=x.device)
    for taken in range(0, samples, at_once):
        count = min(at_once, samples - taken)
        size = (count, latent_size)
        normal = np.stack([draw.standard_normal(size, np.float32) for draw in draws])
        noise = torch.from_numpy(normal).to(x.device)
        z = torch.addcmul(mean[:, None], std[:, None], noise)
        # The draws of a row share a view of it instead of a copy for each draw.
        repeated = x[:, None].expand(-1, count, *x.shape[1:]).flatten(0, 1)
        nll = model.distortion(z.view(-1, *model.latent_shape), repeated).view(rows, count)
        # log p(z) - log q(z|x): the constants cancel.
        log_ratio = 0.5 * (noise.square_() - z.square_()).sum(2) + log_std[:, None]
        weights.add(log_ratio - nll)
        distortion += nll.double().sum(1)
    nll = math.log(samples) - weights.largest - weights.sum.log()
    effective = weights.sum.square() / weights.squares
    rate = gaussian_kl(mean, log_var).double()
    return (distortion / samples).cpu(), rate.cpu(), nll.cpu(), effective.cpu()


def _draws(seed: int, row: int) -> np.random.Generator:
    """A random stream per row, so that a row's draws do not depend on the other rows."""
    key: Any = np.array([seed, row], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
