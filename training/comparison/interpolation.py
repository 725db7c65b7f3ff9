"""Claim: points between two codes of a VAE decode to rows; those of an autoencoder may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

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

_PAIRS: Final = 500
_NEIGHBORS: Final = 5000  # training rows
_MIXED: Final = "pixel mixing"
_REAL: Final = "test rows"
_CONFIDENCE: Final = "classifier's confidence at the midpoint"
_DISTANCE: Final = "RMS pixel distance of the midpoint to the nearest training row"


def _measure(runs: TrainedRuns, seed: int) -> Measurements:
    classifier, numbers = require_classifier(runs), {}
    x, other = pairs(runs, _PAIRS, seed)
    midpoints = {}
    for model, run in MODELS.items():
        loaded = runs.open(run, seed)
        # One call draws both sides, so that a row's draw does not depend on its side.
        codes, _ = loaded.encode(loaded.targets(torch.cat((x, other)), seed))
        midpoints[model] = samples.decode(loaded.model, (codes[: len(x)] + codes[len(x) :]) / 2)
    mixed = (to_unit(x) + to_unit(other)) / 2
    midpoints[_MIXED] = (mixed * 255).round().to(torch.uint8) if x.dtype == torch.uint8 else mixed
    midpoints[_REAL] = x
    train = to_unit(runs.dataset.train.x[:_NEIGHBORS]).flatten(1)
    for name, rows in midpoints.items():
        numbers[_CONFIDENCE, name] = float(classifier.probabilities(rows).amax(1).mean())
        nearest = torch.cdist(to_unit(rows).flatten(1), train).amin(1)
        numbers[_DISTANCE, name] = float(nearest.mean()) / train.shape[1] ** 0.5
    return numbers


def pairs(runs: TrainedRuns, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pairs of test rows from two different classes: two tensors (up to count, *shape)."""
    test = runs.dataset.test
    assert test.y is not None, "no labels"
    draws = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(len(test), (4 * count,), generator=draws) for _ in range(2))
    different = (test.y[a] != test.y[b]).nonzero()[:count, 0]
    return test.x[a[different]], test.x[b[different]]


def _verdict(found: Mapping[Key, Spread]) -> tuple[bool, str]:
    sure = {name: found[_CONFIDENCE, name].mean for name in (VAE, AE, _MIXED)}
    far = {name: found[_DISTANCE, name].mean for name in (VAE, AE, _MIXED)}
    holds = all(sure[VAE] > sure[name] and far[VAE] < far[name] for name in (AE, _MIXED))
    best, nearest = max(sure, key=lambda n: sure[n]), min(far, key=lambda n: far[n])
    return holds, (
        f"The classifier is surest of the midpoints of {best} (VAE {sure[VAE]:.2f}, AE "
        f"{sure[AE]:.2f}, mixing {sure[_MIXED]:.2f}); nearest to real rows are those of {nearest}."
    )


HYPOTHESIS: Final = Hypothesis(
    title="Smooth interpolation",
    statement="Half-way between the codes of two rows of different classes lies a plausible row.",
    expectation="The VAE's midpoints are more confidently classified, and nearer to real rows, "
    "than the AE's and than a mix of the pixels.",
    measure=_measure,
    verdict=_verdict,
)
