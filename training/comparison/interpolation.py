"""Between two codes of a VAE there are rows; between two of an autoencoder there may be nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from latentd.training.comparison.claim import AE, MODELS, VAE, Claim, Key, Numbers, Spread, judge_of
from latentd.training.comparison.stage import Stage
from latentd.training.evaluation import samples
from latentd.training.model import unit

_PAIRS: Final = 500
_NEIGHBOURS: Final = 5000  # training rows
_MIXED: Final = "pixel mixing"
_REAL: Final = "test rows"
_CONFIDENCE: Final = "classifier's confidence at the midpoint"
_DISTANCE: Final = "RMS pixel distance of the midpoint to the nearest training row"


def _measure(stage: Stage, seed: int) -> Numbers:
    judge, numbers = judge_of(stage), {}
    x, other = pairs(stage, _PAIRS, seed)
    midpoints = {}
    for model, run in MODELS.items():
        subject = stage.open(run, seed)
        # Observed together, so that a row's draw does not depend on which side it stands.
        codes, _ = subject.encode(subject.observed(torch.cat((x, other)), seed))
        midpoints[model] = samples.decode(subject.model, (codes[: len(x)] + codes[len(x) :]) / 2)
    mixed = (unit(x) + unit(other)) / 2
    midpoints[_MIXED] = (mixed * 255).round().to(torch.uint8) if x.dtype == torch.uint8 else mixed
    midpoints[_REAL] = x
    train = unit(stage.dataset.train.x[:_NEIGHBOURS]).flatten(1)
    for name, rows in midpoints.items():
        numbers[_CONFIDENCE, name] = float(judge.probabilities(rows).amax(1).mean())
        nearest = torch.cdist(unit(rows).flatten(1), train).amin(1)
        numbers[_DISTANCE, name] = float(nearest.mean()) / train.shape[1] ** 0.5
    return numbers


def pairs(stage: Stage, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Test rows of two different classes each: (up to count, *shape), twice."""
    test = stage.dataset.test
    assert test.y is not None, "judged by labels"
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


CLAIM: Final = Claim(
    title="Smooth interpolation",
    says="Half-way between the codes of two rows of different classes lies a plausible row.",
    expects="The VAE's midpoints are more confidently classified, and nearer to real rows, than "
    "the AE's and than a mix of the pixels.",
    measure=_measure,
    verdict=_verdict,
)
