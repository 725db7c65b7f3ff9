"""Claim: posterior collapse is a risk, but it can be detected and fixed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from latentd.training.comparison.hypothesis import Hypothesis, Key, Measurements, Spread
from latentd.training.comparison.trained_runs import TrainedRuns
from latentd.training.evaluation.active_units import measure_units

_AVERAGED: Final = "reconstruction averaged over pixels"
_SUMMED: Final = "summed, as it should be"
_ACTIVE: Final = "active units"
_RATE: Final = "rate, nats"
_NAMED: Final = "named COLLAPSED by `evaluate`"


def _measure(runs: TrainedRuns, seed: int) -> Measurements:
    numbers: Measurements = {}
    for name, run in ((_AVERAGED, "collapsing"), (_SUMMED, "vae")):
        loaded = runs.open(run, seed)
        found = measure_units(*loaded.encode(loaded.targets(runs.dataset.test.x, seed)))
        numbers[_ACTIVE, name] = found.count
        numbers[_RATE, name] = float(found.kl.sum())
        numbers[_NAMED, name] = float(found.collapsed)
    return numbers


def _verdict(found: Mapping[Key, Spread]) -> tuple[bool, str]:
    broken, fixed = found[_NAMED, _AVERAGED].mean, found[_NAMED, _SUMMED].mean
    return broken == 1 and fixed == 0, (
        f"{broken:.0%} of the runs that weigh the KL too heavily are named collapsed, and "
        f"{fixed:.0%} of those that do not."
    )


HYPOTHESIS: Final = Hypothesis(
    title="Collapse, and its remedy",
    statement="A VAE may ignore its code: q(z|x) becomes the prior. Training has to watch for it.",
    expectation="Averaging the reconstruction over the pixels instead of summing it (a KL as many "
    "times too heavy) collapses every run, and it is named; summing collapses none.",
    measure=_measure,
    verdict=_verdict,
)
