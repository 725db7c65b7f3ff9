"""The best linear VAE of some rows, in closed form: their principal components."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MAX_SIDE: Final = 64  # pixels: larger images are averaged first; details are left to the net
_MAX_ROWS: Final = 4096  # enough for a few hundred components
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
        most, drawn by `seed`."""
        from sklearn.decomposition import PCA  # imported here: only a new run needs it

        draws = torch.Generator().manual_seed(seed)
        rows = x[torch.randperm(len(x), generator=draws)[:_MAX_ROWS].sort().values]
        rows = rows.float() / 255 if rows.dtype == torch.uint8 else rows
        small = self._average(rows).flatten(1)
        count = min(len(self.scale), *small.shape)
        found = PCA(count, svd_solver="randomized", random_state=seed % (1 << 32))
        found.fit(small.numpy())
        self.center.copy_(torch.from_numpy(found.mean_))
        self.components[:, :count] = torch.from_numpy(found.components_.T.copy())
        variance = torch.zeros_like(self.scale)
        variance[:count] = torch.from_numpy(found.explained_variance_)
        self.scale.copy_(variance.sqrt())
        self.shrinkage.fill_(1)
        rest = (self.decode(self.encode(rows)[0]) - rows).square().flatten(1).sum(1).mean()
        noise = (rest / max(1, rows[0].numel() - count)).clamp(min=_LEAST_VARIANCE)
        self.std.copy_(noise.sqrt())
        # An averaged pixel has less noise. What is left of its variance is the latents'.
        small_noise = noise / self.square**2
        explained = (variance - small_noise).clamp(min=0)
        self.scale.copy_(explained.sqrt())
        gain = explained / small_noise
        self.shrinkage.copy_(gain / (1 + gain))
        self.log_var.copy_(-(1 + gain).log())

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
