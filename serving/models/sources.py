"""Where the decoder's latents come from: given, drawn from the prior, or drawn around an encoding.

Requests carry *sources*, not latents: the lane's thread turns the sources of a whole batch into
one array, making all its draws in one vectorised pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.batching.rowqueue import Share
from serving.latents import Draw, Latents, normals


@dataclass(frozen=True, slots=True)
class Points:
    """Latents as they are."""

    z: Latents

    @property
    def rows(self) -> int:
        """How many latents it gives."""
        return len(self.z)


@dataclass(frozen=True, slots=True)
class Prior:
    """z = temperature * eps: what Sample decodes."""

    draw: Draw
    temperature: float = 1.0

    @property
    def rows(self) -> int:
        """How many latents it gives."""
        return self.draw.rows


@dataclass(frozen=True, slots=True)
class Posterior:
    """z = mean + exp(log_var / 2) * eps: the reparameterised draw (Kingma and Welling 2014)."""

    mean: Latents
    log_var: Latents
    draw: Draw

    @property
    def rows(self) -> int:
        """How many latents it gives."""
        return self.draw.rows

    def latents(self) -> Latents:
        """The draw itself, (rows, latent size)."""
        eps = normals([self.draw], self.mean.shape[1])
        return reparameterise(self.mean, self.log_var, eps)


def reparameterise(mean: Latents, log_var: Latents, eps: Latents) -> Latents:
    """mean + exp(log_var / 2) * eps, each (rows, latent size)."""
    z: Latents = mean + np.exp(np.float32(0.5) * log_var) * eps
    return z


Source = Points | Prior | Posterior


@dataclass(frozen=True, slots=True)
class Decoding:
    """What waits in the decoder lane."""

    source: Source
    params: bool  # the parameters of p(x | z) are wanted, not only its mean


def gather(batch: Sequence[Share], latent_size: int) -> Latents:
    """The latents of a batch of decodings, (rows, latent_size)."""
    draws = [
        share.payload.source.draw.part(share.start, share.stop)
        for share in batch
        if not isinstance(share.payload.source, Points)
    ]
    normal = normals(draws, latent_size) if draws else np.empty((0, latent_size), np.float32)
    if all(type(share.payload.source) is Prior for share in batch):
        return _scale(normal, batch)  # Sample's own batches: nothing to be done row by row
    z = np.empty((sum(share.rows for share in batch), latent_size), np.float32)
    at = drawn = 0
    for share in batch:
        source, rows = share.payload.source, slice(share.start, share.stop)
        into = z[at : at + share.rows]
        at += share.rows
        if isinstance(source, Points):
            into[:] = source.z[rows]
            continue
        eps = normal[drawn : drawn + share.rows]
        drawn += share.rows
        if isinstance(source, Prior):
            np.multiply(eps, np.float32(source.temperature), out=into)
        else:
            into[:] = reparameterise(source.mean[rows], source.log_var[rows], eps)
    return z


def _scale(normal: Latents, batch: Sequence[Share]) -> Latents:
    """Each row times its request's temperature."""
    temperatures = [share.payload.source.temperature for share in batch]
    if all(temperature == 1.0 for temperature in temperatures):
        return normal
    rows = [share.rows for share in batch]
    return normal * np.repeat(np.array(temperatures, np.float32), rows)[:, None]
