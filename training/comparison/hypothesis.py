"""A textbook claim: what we expected before we measured it, and the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from latentd.training.comparison.trained_runs import TrainedRuns
from latentd.training.evaluation.classifier import Classifier

VAE, AE = "VAE", "AE"
MODELS = {VAE: "vae", AE: "ae"}  # as TrainedRuns.open names them
Key = tuple[str, str]  # what was measured, and of which model
Measurements = dict[Key, float]  # what one seed gave


@dataclass(frozen=True)
class Spread:
    """One number over the seeds. NaN where a seed had none, such as a variance of no units."""

    mean: float
    sd: float  # 0 for one seed

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "none"
        digits = 3 if abs(self.mean) < 10 else 1
        return f"{self.mean:,.{digits}f} ± {self.sd:,.{digits}f}"


class Skipped(Exception):
    """A claim that cannot be measured on these data: the sentence says why and what would do."""


@dataclass(frozen=True)
class Hypothesis:
    """One row of the report."""

    title: str
    statement: str  # the claim, as textbooks make it
    expectation: str  # ours, before the measurement
    measure: Callable[[TrainedRuns, int], Measurements]  # of one seed; may raise Skipped
    verdict: Callable[[Mapping[Key, Spread]], tuple[bool, str]]  # does it hold, and in words


def spread(seeds: list[Measurements]) -> dict[Key, Spread]:
    """Every number over the seeds."""
    columns = {key: np.array([numbers[key] for numbers in seeds]) for key in seeds[0]}
    return {
        key: Spread(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0)
        for key, values in columns.items()
    }


def require_classifier(runs: TrainedRuns) -> Classifier:
    """The classifier. Raises Skipped where the data have no labels to train one on."""
    if runs.classifier is None:
        raise Skipped("The data have no labels, and this needs a classifier.")
    return runs.classifier
