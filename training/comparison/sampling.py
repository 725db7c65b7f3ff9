"""Claim: a VAE makes new samples from its prior; an autoencoder has no prior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from latentd.training.comparison.hypothesis import (
    AE,
    MODELS,
    VAE,
    Hypothesis,
    Key,
    Measurements,
    Spread,
    require_classifier,
)
from latentd.training.comparison.trained_runs import TrainedRuns
from latentd.training.evaluation import samples
from latentd.training.evaluation.frechet import frechet
from latentd.training.evaluation.linear_probe import ROWS

_PRIOR: Final = "Frechet distance, z from N(0, I)"
_FITTED: Final = "Frechet distance, z from a Gaussian fitted to the codes"
_REAL: Final = "Frechet distance of real training rows"


def _measure(runs: TrainedRuns, seed: int) -> Measurements:
    classifier, numbers = require_classifier(runs), {}
    real = classifier.features(runs.dataset.test.x)
    for model, run in MODELS.items():
        loaded = runs.open(run, seed)
        codes, _ = loaded.encode(loaded.targets(runs.dataset.train.x[:ROWS], seed))
        for what, z in (
            (_PRIOR, samples.prior(samples.COUNT, codes.shape[1], seed)),
            (_FITTED, samples.fitted(codes, samples.COUNT, seed)),
        ):
            drawn = classifier.features(samples.decode(loaded.model, z))
            numbers[what, model] = frechet(drawn, real)
    train = classifier.features(runs.dataset.train.x[: samples.COUNT])
    numbers[_REAL, "data"] = frechet(train, real)
    return numbers


def _verdict(found: Mapping[Key, Spread]) -> tuple[bool, str]:
    vae, ae, fitted = found[_PRIOR, VAE].mean, found[_PRIOR, AE].mean, found[_FITTED, AE].mean
    winner = (
        f"The AE with a fitted Gaussian, which is no longer a plain AE, WINS: {fitted:.1f}."
        if fitted < vae
        else f"A Gaussian fitted to the AE's codes gives {fitted:.1f}."
    )
    return vae < ae, f"From N(0, I) the VAE is at {vae:.1f}, the AE at {ae:.1f}. {winner}"


HYPOTHESIS: Final = Hypothesis(
    title="New samples",
    statement="Decoding z from N(0, I) gives new rows from a VAE, and nonsense from an AE.",
    expectation="From N(0, I) the VAE is nearer to the test rows than the AE. The AE with a "
    "Gaussian fitted to its codes comes close or wins.",
    measure=_measure,
    verdict=_verdict,
)
