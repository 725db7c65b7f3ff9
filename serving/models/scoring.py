"""What one Score call makes of its draws: summed where they are decoded, so that none is kept.

The thread that runs a batch scores the rows of it. So the queue's rules hold for all of a call's
work, and no other thread competes with the next batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from latentd import likelihood
from latentd.bundle import LIKELIHOODS, Manifest
from latentd.latents import POSTERIOR, Latents, NoiseRange
from latentd.models.sources import PosteriorSamples

_MEASURED: Final = 64  # draws of one row
_MEASURED_SIZE: Final = 4096  # elements of a row; more cost as much each
_TURNS: Final = 3


@dataclass(frozen=True, slots=True)
class Scores:
    """Each in nats, float64, shape (rows,)."""

    kl: likelihood.Nats
    elbo: likelihood.Nats
    reconstruction_error: likelihood.Nats | None = None
    log_likelihood: likelihood.Nats | None = None

    def __iter__(self) -> Iterator[likelihood.Nats | None]:
        """All of them, and None for those that were not asked for."""
        return iter((self.kl, self.elbo, self.reconstruction_error, self.log_likelihood))


class Scoring:
    """Rows x, shape (rows, *shape), and the draws around their encodings."""

    def __init__(self, x: NDArray[Any], source: PosteriorSamples, manifest: Manifest) -> None:
        self._x, self._source = x, source
        self._spec, self._likelihood = manifest.x, manifest.likelihood
        self._log_weights = np.empty(source.rows)
        self._distortions = np.empty(source.rows)

    def take(self, start: int, stop: int, z: Latents, params: NDArray[np.float32]) -> None:
        """Score rows start..stop of the source: z, and the params decoded from it."""
        rows = self._source.encodings(start, stop)
        x = likelihood.to_unit_interval(self._x[rows], self._spec)
        distortion = -likelihood.log_prob(x, params, self._likelihood)
        mean, log_var = self._source.mean[rows], self._source.log_var[rows]
        self._distortions[start:stop] = distortion
        self._log_weights[start:stop] = likelihood.log_prior_ratio(z, mean, log_var) - distortion

    @np.errstate(invalid="ignore")
    def scores(self) -> Scores:
        """ELBO and importance-weighted bound of each row, once all of the source has been taken."""
        source = self._source
        distortion = self._distortions.reshape(source.draws, -1).mean(axis=0)
        weights = self._log_weights.reshape(source.draws, -1)
        most = weights.max(axis=0)
        bound = most + np.log(np.exp(weights - most).mean(axis=0))
        kl = likelihood.kl_to_standard_normal(source.mean, source.log_var)
        return Scores(kl, -distortion - kl, log_likelihood=bound)


@dataclass(frozen=True, slots=True)
class Seconds:
    """What scoring costs here beside the runs of the decoder."""

    draw: float  # to make the noise of one draw, of one row or a few
    density: float  # log p(x | z) of one row


def measure(manifest: Manifest) -> Seconds:
    """Measure both: the fastest of a few turns."""
    size = min(manifest.x.size, _MEASURED_SIZE)
    mean = np.zeros((1, manifest.latent_size), np.float32)
    source = PosteriorSamples(mean, mean, NoiseRange(0, 0, 1, POSTERIOR), _MEASURED)
    scoring = Scoring(np.zeros((1, size), manifest.x.dtype), source, manifest)
    params = np.zeros((_MEASURED, LIKELIHOODS[manifest.likelihood], size), np.float32)
    draws, densities = [], []
    for _ in range(_TURNS):
        began = time.perf_counter()
        z = source.latents()
        drawn = time.perf_counter()
        scoring.take(0, _MEASURED, z, params)
        draws.append(drawn - began)
        densities.append(time.perf_counter() - drawn)
    density = min(densities) / _MEASURED * manifest.x.size / size
    return Seconds(min(draws) / _MEASURED, density)
