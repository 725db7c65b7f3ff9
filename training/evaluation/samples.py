"""New rows, decoded from latents that are drawn from a normal distribution."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from latentd.training.dataset import max_batch_rows
from latentd.training.evaluation.likelihood import AT_ONCE
from latentd.training.model import Model, decoded

COUNT: Final = 10_000  # rows for a Frechet distance


def prior(count: int, latent_size: int, seed: int) -> Tensor:
    """z ~ N(0, I): float32 (count, latent_size)."""
    return torch.randn((count, latent_size), generator=torch.Generator().manual_seed(seed))


def fitted(mean: Tensor, count: int, seed: int) -> Tensor:
    """z from the normal distribution fitted to the codes `mean` (rows, latent_size). This samples
    an autoencoder, which has no prior."""
    centered = mean.double() - mean.double().mean(0)
    values, vectors = torch.linalg.eigh(centered.T @ centered / (len(mean) - 1))
    scaled = vectors * values.clamp_min(0).sqrt()
    z: Tensor = prior(count, mean.shape[1], seed).double() @ scaled.T + mean.double().mean(0)
    return z.float()


@torch.inference_mode()
def decode(model: Model, z: Tensor) -> Tensor:
    """E[x|z] in the data's form: (rows, *shape) on the CPU. z: vectors. model: on any device."""
    device = next(model.parameters()).device
    z = z.reshape(-1, *model.latent_shape)
    parts = torch.split(z, max_batch_rows(model.output_shape, AT_ONCE))
    return torch.cat([decoded(model, part.to(device)).cpu() for part in parts])
