"""The best linear VAE of some rows, in closed form: their principal components."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MAX_SIDE: Final = 64  # pixels: larger images are averaged first; details are left to the net
_MAX_ROWS: Final = 4096  # enough for a few hundred components
_MAX_VALUES: Final = 1 << 22  # of rows that are floats at a time: all may be larger than the memory
_LEAST_VARIANCE: Final = 1e-8  # of a component, and of the noise: x has steps of 1/255


class LinearVAE(nn.Module):
    """z = scaled principal components, x = mean + W z + noise of one standard deviation.

    The decoder's best W and the encoder's mean and log-variance: Tipping and Bishop (1999),
    "Probabilistic principal component analysis", eq. 7 and 8. Large images are averaged over
    squares first, and enlarged bilinearly. `fit` computes everything; until then all is 0.
    """

    center: Tensor  # (values,)
    components: Tensor  # (values, latent_size), orthonormal
    scale: Tensor  # (latent_size,): the standard deviation of each component, in the prior
    shrinkage: Tensor  # (latent_size,): of the encoder's mean
    log_var: Tensor  # (latent_size,)
    std: Tensor  # (): of the noise

    def __init__(self, shape: tuple[int, ...], latent_size: int) -> None:
        super().__init__()
        self.shape, self.square = shape, -(-max(shape[:2]) // _MAX_SIDE)
        with torch.device("meta"):
            self.small = tuple(self._average(torch.zeros(1, *shape)).shape[1:])
        values = int(np.prod(self.small))
        self.register_buffer("center", torch.zeros(values))
        self.register_buffer("components", torch.zeros(values, latent_size))
        for name in ("scale", "shrinkage", "log_var"):
            self.register_buffer(name, torch.zeros(latent_size))
        self.register_buffer("std", torch.ones(()))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """float32 (rows, *shape) in [0, 1] -> mean, log_var (rows, latent_size)."""
        found = (self._average(x).flatten(1) - self.center) @ self.components
        mean = found * (self.shrinkage / self.scale.clamp(min=_LEAST_VARIANCE))
        return mean, self.log_var.expand_as(mean)

    def decode(self, z: Tensor) -> Tensor:
        """(rows, latent_size) -> the mean of x: (rows, *shape)."""
        small = self.center + (z * self.scale) @ self.components.T
        return self._enlarge(small.reshape(-1, *self.small))

    @torch.no_grad()
    def fit(self, x: Tensor, seed: int) -> None:
        """The components of rows (rows, *shape) in [0, 1] or bytes, on the CPU. Uses 4,096 rows at
        most, drawn by `seed`, and at most one component for two rows."""
        from sklearn.decomposition import PCA  # imported here: only a new run needs it

        draws = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(x), generator=draws)[:_MAX_ROWS].sort().values
        parts = torch.split(chosen, max(1, _MAX_VALUES // x[0].numel()))
        small = torch.cat([self._average(_unit(x[part])).flatten(1) for part in parts])
        free = len(small) - 1  # the mean takes one row's
        # More components than half of the rows would be the rows' noise.
        count = min(len(self.scale), small.shape[1], max(1, free // 2))
        found = PCA(count, svd_solver="randomized", random_state=seed % (1 << 32))
        with np.errstate(invalid="ignore"):  # of one row sklearn divides by 0 what is not used here
            found.fit(small.numpy())
        self.center.copy_(torch.from_numpy(found.mean_))
        self.components[:, :count] = torch.from_numpy(found.components_.T.copy())
        variance = torch.zeros_like(self.scale)
        variance[:count] = torch.from_numpy(found.singular_values_**2) / max(1, free)
        self.scale.copy_(variance.sqrt())
        self.shrinkage.fill_(1)
        rest = sum(self._squared_error(_unit(x[part])) for part in parts)
        # The components fit these rows better than others: what is left has fewer freedoms.
        freedoms = max(1, free - count) * max(1, x[0].numel() - count)
        noise = torch.tensor(rest / freedoms).clamp(min=_LEAST_VARIANCE)
        self.std.copy_(noise.sqrt())
        # An averaged pixel has less noise. What is left of its variance is the latents'.
        small_noise = noise / self.square**2
        explained = (variance - small_noise).clamp(min=0)
        self.scale.copy_(explained.sqrt())
        gain = explained / small_noise
        self.shrinkage.copy_(gain / (1 + gain))
        self.log_var.copy_(-(1 + gain).log())

    def _squared_error(self, x: Tensor) -> float:
        """Of all values of the rows, from what the decoder makes of the encoder's means."""
        error = self.decode(self.encode(x)[0]) - x
        return float(error.square().sum(dtype=torch.float64))

    def _average(self, x: Tensor) -> Tensor:
        """(rows, height, width[, colors]) -> the same of averages over squares."""
        if self.square == 1:
            return x
        h = x.unsqueeze(1) if x.ndim == 3 else x.movedim(3, 1)
        h = F.avg_pool2d(h, self.square, ceil_mode=True, count_include_pad=False)
        return h[:, 0] if x.ndim == 3 else h.movedim(1, 3)

    def _enlarge(self, x: Tensor) -> Tensor:
        """The averages -> (rows, *shape)."""
        if self.square == 1:
            return x
        h = x.unsqueeze(1) if x.ndim == 3 else x.movedim(3, 1)
        h = F.interpolate(h, size=self.shape[:2], mode="bilinear", align_corners=False)
        return h[:, 0] if x.ndim == 3 else h.movedim(1, 3)


def _unit(x: Tensor) -> Tensor:
    """Rows as floats in [0, 1]."""
    return x.float() / 255 if x.dtype == torch.uint8 else x
