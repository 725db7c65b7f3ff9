"""Claim: an autoencoder encodes a row as a point, and a VAE encodes it as a distribution."""

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
from latentd.training.model import to_unit

_ROWS: Final = 300
_DRAWS: Final = 20
_VARIES: Final = "standard deviation of a decoded pixel over draws of z"
_AGREES: Final = "draws decoded to the class of the mean's decode"


def _measure(runs: TrainedRuns, seed: int) -> Measurements:
    classifier, numbers = require_classifier(runs), {}
    for model, run in MODELS.items():
        loaded = runs.open(run, seed)
        mean, log_var = loaded.encode(loaded.targets(runs.dataset.test.x[:_ROWS], seed))
        noise = samples.prior(_DRAWS * len(mean), mean.shape[1], seed).view(_DRAWS, *mean.shape)
        z = mean + (0.5 * log_var).exp() * noise
        drawn = samples.decode(loaded.model, z.flatten(0, 1))
        central = classifier.probabilities(samples.decode(loaded.model, mean)).argmax(1)
        seen = classifier.probabilities(drawn).argmax(1).view(_DRAWS, -1)
        pixels = to_unit(drawn).view(_DRAWS, *drawn[: len(mean)].shape)
        numbers[_VARIES, model] = float(pixels.std(0).mean())
        numbers[_AGREES, model] = float((seen == central).double().mean())
    return numbers


def _verdict(found: Mapping[Key, Spread]) -> tuple[bool, str]:
    varies, agrees = found[_VARIES, VAE].mean, found[_AGREES, VAE].mean
    still = found[_VARIES, AE].mean
    holds = varies > 10 * still and agrees >= 0.95
    return holds, (
        f"Draws for one x differ by {varies:.3f} of the range in a pixel (AE {still:.3f}) and "
        f"{agrees:.1%} of them keep the class."
    )


HYPOTHESIS: Final = Hypothesis(
    title="A point or a distribution",
    statement="An AE encodes x as a point, a VAE as a distribution: one x has many z, and each "
    "decodes to something like x.",
    expectation="The VAE's decodes of one x vary, the AE's cannot. At least 95% of the VAE's keep "
    "the class of the mean's decode.",
    measure=_measure,
    verdict=_verdict,
)
