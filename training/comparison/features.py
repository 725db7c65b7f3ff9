"""The code as features: the accuracy of a linear classifier on it."""

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
from latentd.training.evaluation.linear_probe import ROWS, linear_probe

_ACCURACY: Final = "accuracy of a linear probe on the mean of z, test rows"


def _measure(runs: TrainedRuns, seed: int) -> Measurements:
    require_classifier(runs)  # the probe needs labels
    train, test, numbers = runs.dataset.train, runs.dataset.test, {}
    assert train.y is not None, "no labels"
    assert test.y is not None, "no labels"
    for model, run in MODELS.items():
        loaded = runs.open(run, seed)
        codes, _ = loaded.encode(loaded.targets(train.x[:ROWS], seed))
        test_codes, _ = loaded.encode(loaded.targets(test.x, seed + 1))
        found = linear_probe(codes, train.y[:ROWS], test_codes, test.y)
        numbers[_ACCURACY, model] = found.accuracy
    return numbers


def _verdict(found: Mapping[Key, Spread]) -> tuple[bool, str]:
    vae, ae = found[_ACCURACY, VAE].mean, found[_ACCURACY, AE].mean
    wins = "the AE's WIN" if ae > vae else "the AE's do not win"
    return vae >= 0.95, f"{vae:.1%} from the VAE's means, {ae:.1%} from the AE's codes: {wins}."


HYPOTHESIS: Final = Hypothesis(
    title="Features",
    statement="The code is a good description: a linear classifier on it does well.",
    expectation="At least 95% on MNIST from the VAE's means. The AE may tie or win, because "
    "nothing makes it forget.",
    measure=_measure,
    verdict=_verdict,
)
