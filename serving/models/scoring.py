"""Computes the scores of one Score call from its draws, without keeping the draws.

The batcher's thread that decodes a batch also scores its rows. So the queue's rules hold for all of
a call's work, and no other thread competes with the next batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from latentd import likelihood
from latentd.bundle import Manifest
from latentd.latents import POSTERIOR, Latents, NoiseRange
from latentd.models.sources import PosteriorSamples

_MEASURED_DRAWS: Final = 64  # of one row
_MAX_MEASURED_SIZE: Final = 4096  # elements of a row; each element more costs the same
_REPEATS: Final = 3


@dataclass(frozen=True, slots=True)
class ScoreOutputs:
    """Each in nats, float64, shape (rows,)."""

    kl: likelihood.Nats
    elbo: likelihood.Nats
    reconstruction_error: likelihood.Nats | None = None
    log_likelihood: likelihood.Nats | None = None

    def __iter__(self) -> Iterator[likelihood.Nats | None]:
        """All of them; None for those that were not requested."""
        return iter((self.kl, self.elbo, self.reconstruction_error, self.log_likelihood))


def score_reconstructions(
    x: NDArray[Any],
    mean: Latents,
    log_var: Latents,
    params: NDArray[np.float32],
    manifest: Manifest,
) -> ScoreOutputs:
    """The scores of rows x, shape (rows, *shape), from the params decoded from one latent each."""
    assert manifest.likelihood
    scaled = likelihood.to_unit_interval(x, manifest.default.x)
    distortion = -likelihood.log_prob(scaled, params, manifest.likelihood.name)
    kl = likelihood.kl_to_standard_normal(mean, log_var)
    return ScoreOutputs(kl, -distortion - kl, reconstruction_error=distortion)


class Scoring:
    """The scores of rows x, shape (rows, *shape), from draws around their encodings."""

    def __init__(self, x: NDArray[Any], source: PosteriorSamples, manifest: Manifest) -> None:
        self._x, self._source = x, source
        assert manifest.likelihood
        self._spec, self._likelihood = manifest.default.x, manifest.likelihood.name
        self._log_weights = np.empty(source.rows)
        self._distortions = np.empty(source.rows)

    def add(self, start: int, stop: int, z: Latents, params: NDArray[np.float32]) -> None:
        """Score rows start..stop of the source: their z, and the params decoded from z."""
        rows = self._source.encodings(start, stop)
        x = likelihood.to_unit_interval(self._x[rows], self._spec)
        distortion = -likelihood.log_prob(x, params, self._likelihood)
        mean, log_var = self._source.mean[rows], self._source.log_var[rows]
        self._distortions[start:stop] = distortion
        self._log_weights[start:stop] = likelihood.log_prior_ratio(z, mean, log_var) - distortion

    @np.errstate(invalid="ignore")
    def scores(self) -> ScoreOutputs:
        """ELBO and importance-weighted bound of each row, after `add` has had all of the source."""
        source = self._source
        distortion = self._distortions.reshape(source.draws, -1).mean(axis=0)
        weights = self._log_weights.reshape(source.draws, -1)
        largest = weights.max(axis=0)
        bound = largest + np.log(np.exp(weights - largest).mean(axis=0))
        kl = likelihood.kl_to_standard_normal(source.mean, source.log_var)
        return ScoreOutputs(kl, -distortion - kl, log_likelihood=bound)


@dataclass(frozen=True, slots=True)
class ScoringSeconds:
    """CPU time that scoring costs on this machine in addition to the decoder's runs."""

    draw: float  # the noise of one draw of one row, in a call of few rows
    density: float  # log p(x | z) of one row


def measure(manifest: Manifest) -> ScoringSeconds:
    """Measure both: the fastest of a few repeats."""
    shapes = manifest.default
    if manifest.likelihood is None:
        return ScoringSeconds(0.0, 0.0)
    size = min(shapes.x.size, _MAX_MEASURED_SIZE)
    mean = np.zeros((1, *shapes.z), np.float32)
    source = PosteriorSamples(mean, mean, NoiseRange(0, 0, 1, POSTERIOR), _MEASURED_DRAWS)
    scoring = Scoring(np.zeros((1, size), manifest.x.dtype), source, manifest)
    params = np.zeros((_MEASURED_DRAWS, len(manifest.likelihood.parameters), size), np.float32)
    draws, densities = [], []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        z = source.latents()
        drawn = time.perf_counter()
        scoring.add(0, _MEASURED_DRAWS, z, params)
        draws.append(drawn - started)
        densities.append(time.perf_counter() - drawn)
    density = min(densities) / _MEASURED_DRAWS * shapes.x.size / size
    return ScoringSeconds(min(draws) / _MEASURED_DRAWS, density)
