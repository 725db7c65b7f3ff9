"""The sources of the decoder's latents: given, drawn from the prior, or drawn around an encoding.

Requests carry *sources*, not latents. The batcher's thread turns the sources of a whole batch into
one array and makes all draws in one vectorized pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentd.batching.entries import BatchItem
from latentd.latents import Latents, Noise, NoiseRange, standard_normal
from latentd.tiles import TiledRows


class GivenLatents(NamedTuple):
    """Latents that the request contains."""

    z: Latents | TiledRows

    @property
    def rows(self) -> int:
        """The number of latents."""
        return len(self.z)


class PriorSamples(NamedTuple):
    """z = temperature * eps: what Sample decodes."""

    draw: Noise
    temperature: float = 1.0

    @property
    def rows(self) -> int:
        """The number of latents."""
        return self.draw.rows

    def latents(self, shape: tuple[int, ...]) -> Latents:
        """The latents themselves, (rows, *shape)."""
        z: Latents = standard_normal([self.draw], shape) * np.float32(self.temperature)
        return z


@dataclass(frozen=True, slots=True)
class PosteriorSamples:
    """z = mean + exp(log_var / 2) * eps: the reparameterized draw (Kingma and Welling 2014).

    `draws` is the number of latents of each encoding. First comes one latent of every encoding,
    from the draw's own stream, then another of every encoding, from the next stream, and so on.
    """

    mean: Latents
    log_var: Latents
    draw: NoiseRange
    draws: int = 1

    @property
    def rows(self) -> int:
        """The number of latents."""
        return self.draw.rows * self.draws

    def parts(self, start: int, stop: int) -> list[NoiseRange]:
        """The noise of rows start..stop."""
        if self.draws == 1:
            return [self.draw.slice(start, stop)]
        each, draw, parts = self.draw.rows, self.draw, []
        for k in range(start // each, -(-stop // each)):
            first, last = max(start - k * each, 0), min(stop - k * each, each)
            parts.append(NoiseRange(draw.seed, draw.offset + first, last - first, draw.stream + k))
        return parts

    def encodings(self, start: int, stop: int) -> slice | NDArray[np.int64]:
        """The rows of mean and log_var that rows start..stop are drawn around."""
        if self.draws == 1:
            return slice(start, stop)
        return np.arange(start, stop) % self.draw.rows

    def latents(self) -> Latents:
        """The latents themselves, (rows, *shape of one latent)."""
        eps = standard_normal(self.parts(0, self.rows), self.mean.shape[1:])
        rows = self.encodings(0, self.rows)
        return reparameterize(self.mean[rows], self.log_var[rows], eps)


@np.errstate(over="ignore", invalid="ignore")
def reparameterize(mean: Latents, log_var: Latents, eps: Latents) -> Latents:
    """mean + exp(log_var / 2) * eps, each (rows, *shape of one latent)."""
    z: Latents = mean + np.exp(np.float32(0.5) * log_var) * eps
    return z


Source = GivenLatents | PriorSamples | PosteriorSamples


def materialize(batch: Sequence[BatchItem], shape: tuple[int, ...]) -> Latents:
    """The latents of a batch of decodings, (rows, *shape)."""
    if all(type(item.payload.source) is PriorSamples for item in batch):
        # A batch of Sample calls only: faster than item by item.
        parts = [item.payload.source.draw.slice(item.start, item.stop) for item in batch]
        return _scale(standard_normal(parts, shape), batch)
    draws: list[Noise] = []
    for item in batch:
        if isinstance(item.payload.source, PriorSamples):
            draws.append(item.payload.source.draw.slice(item.start, item.stop))
        elif isinstance(item.payload.source, PosteriorSamples):
            draws += item.payload.source.parts(item.start, item.stop)
    normal = standard_normal(draws, shape) if draws else np.empty((0, *shape), np.float32)
    z = np.empty((sum(item.rows for item in batch), *shape), np.float32)
    at = drawn = 0
    for item in batch:
        source, rows = item.payload.source, slice(item.start, item.stop)
        into = z[at : at + item.rows]
        at += item.rows
        if isinstance(source, GivenLatents):
            into[:] = source.z[rows]
            continue
        eps = normal[drawn : drawn + item.rows]
        drawn += item.rows
        if isinstance(source, PriorSamples):
            np.multiply(eps, np.float32(source.temperature), out=into)
        else:
            around = source.encodings(item.start, item.stop)
            into[:] = reparameterize(source.mean[around], source.log_var[around], eps)
    return z


def _scale(normal: Latents, batch: Sequence[BatchItem]) -> Latents:
    """Each row times its request's temperature."""
    temperatures = [item.payload.source.temperature for item in batch]
    if all(temperature == 1.0 for temperature in temperatures):
        return normal
    rows = [item.rows for item in batch]
    scales = np.repeat(np.array(temperatures, np.float32), rows)
    return normal * scales.reshape(-1, *[1] * (normal.ndim - 1))
