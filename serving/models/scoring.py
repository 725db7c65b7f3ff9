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

from latentd.bundle import RowShapes
from latentd.latents import POSTERIOR, Latents, NoiseRange
from latentd.models.sources import PosteriorSamples
from latentd.posterior import Nats, kl_to_standard_normal, log_prior_ratio
from latentd.runtime.likelihood import LikelihoodGraph

_MEASURED_DRAWS: Final = 64  # of one row
_MEASURED_ELEMENTS: Final = 1 << 18  # of x in those draws; larger rows are drawn less often
_REPEATS: Final = 3


@dataclass(frozen=True, slots=True)
class ScoreOutputs:
    """Each in nats, float64, shape (rows,)."""

    kl: Nats
    elbo: Nats
    reconstruction_error: Nats | None = None
    log_likelihood: Nats | None = None

    def __iter__(self) -> Iterator[Nats | None]:
        """All of them; None for those that were not requested."""
        return iter((self.kl, self.elbo, self.reconstruction_error, self.log_likelihood))


def score_reconstructions(
    x: NDArray[Any],
    mean: Latents,
    log_var: Latents,
    score_output: NDArray[np.float32],
    likelihood: LikelihoodGraph | None,
) -> ScoreOutputs:
    """The scores of rows x, shape (rows, *shape), from the decoder's score output at one latent
    each: the params of p(x | z), or with likelihood None log p(x | z) itself."""
    distortion = -_log_prob(x, score_output, likelihood)
    kl = kl_to_standard_normal(mean, log_var)
    return ScoreOutputs(kl, -distortion - kl, reconstruction_error=distortion)


def _log_prob(
    x: NDArray[Any], score_output: NDArray[np.float32], likelihood: LikelihoodGraph | None
) -> Nats:
    if likelihood is None:
        return score_output[:, 0].astype(np.float64)
    return likelihood.log_prob(x, score_output)


class Scoring:
    """The scores of rows x, shape (rows, *shape), from draws around their encodings."""

    def __init__(
        self, x: NDArray[Any], source: PosteriorSamples, likelihood: LikelihoodGraph | None
    ) -> None:
        self._x, self._source, self._likelihood = x, source, likelihood
        self._log_weights = np.empty(source.rows)
        self._distortions = np.empty(source.rows)

    def add(self, start: int, stop: int, z: Latents, score_output: NDArray[np.float32]) -> None:
        """Score rows start..stop of the source: their z, and the decoder's score output at z."""
        rows = self._source.encodings(start, stop)
        distortion = -_log_prob(self._x[rows], score_output, self._likelihood)
        mean, log_var = self._source.mean[rows], self._source.log_var[rows]
        self._distortions[start:stop] = distortion
        self._log_weights[start:stop] = log_prior_ratio(z, mean, log_var) - distortion

    @np.errstate(invalid="ignore")
    def scores(self) -> ScoreOutputs:
        """ELBO and importance-weighted bound of each row, after `add` has had all of the source."""
        source = self._source
        distortion = self._distortions.reshape(source.draws, -1).mean(axis=0)
        weights = self._log_weights.reshape(source.draws, -1)
        largest = weights.max(axis=0)
        bound = largest + np.log(np.exp(weights - largest).mean(axis=0))
        kl = kl_to_standard_normal(source.mean, source.log_var)
        return ScoreOutputs(kl, -distortion - kl, log_likelihood=bound)


@dataclass(frozen=True, slots=True)
class ScoringSeconds:
    """CPU time that scoring costs on this machine in addition to the decoder's runs."""

    draw: float  # the noise of one draw of one row, in a call of few rows
    likelihood: float  # log p(x | z) of one row


def measure(likelihood: LikelihoodGraph | None, shapes: RowShapes) -> ScoringSeconds:
    """Measure both for rows of this size: the fastest of a few repeats. Without a likelihood, both
    are 0. Of texts the decoder computes log p(x | z), so only the rest of scoring is measured."""
    of_decoder = (1,) if shapes.x.is_text else shapes.params
    if of_decoder is None or (likelihood is None and not shapes.x.is_text):
        return ScoringSeconds(0.0, 0.0)
    mean = np.zeros((1, *shapes.z), np.float32)
    source = PosteriorSamples(mean, mean, NoiseRange(0, 0, 1, POSTERIOR), _MEASURED_DRAWS)
    scoring = Scoring(np.zeros((1, *shapes.x.shape), shapes.x.dtype), source, likelihood)
    scored = max(1, min(_MEASURED_DRAWS, _MEASURED_ELEMENTS // shapes.x.size))
    score_output = np.zeros((scored, *of_decoder), np.float32)
    draws, likelihoods = [], []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        z = source.latents()
        drawn = time.perf_counter()
        scoring.add(0, scored, z[:scored], score_output)
        draws.append(drawn - started)
        likelihoods.append(time.perf_counter() - drawn)
    return ScoringSeconds(min(draws) / _MEASURED_DRAWS, min(likelihoods) / scored)
