"""A textbook claim, our expectation before the measurement, and the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from latentd.training.comparison.trained_runs import TrainedRuns
from latentd.training.evaluation.classifier import Classifier

VAE, AE = "VAE", "AE"
MODELS = {VAE: "vae", AE: "ae"}  # as TrainedRuns.open names them
Key = tuple[str, str]  # the measured quantity, and the model
Measurements = dict[Key, float]  # the results of one seed


@dataclass(frozen=True)
class Spread:
    """A number's mean and sd over the seeds. NaN if a seed has none: no units, no variance."""

    mean: float
    sd: float  # 0 for one seed

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "none"
        digits = 3 if abs(self.mean) < 10 else 1
        return f"{self.mean:,.{digits}f} ± {self.sd:,.{digits}f}"


class Skipped(Exception):
    """A claim cannot be measured on these data. The message says why and what data it needs."""


@dataclass(frozen=True)
class Hypothesis:
    """One row of the report."""

    title: str
    statement: str  # the claim, in the words of textbooks
    expectation: str  # our expectation before the measurement
    measure: Callable[[TrainedRuns, int], Measurements]  # measures one seed; may raise Skipped
    verdict: Callable[[Mapping[Key, Spread]], tuple[bool, str]]  # whether it holds, and a sentence


def spread(seeds: list[Measurements]) -> dict[Key, Spread]:
    """The spread of every number over the seeds."""
    columns = {key: np.array([numbers[key] for numbers in seeds]) for key in seeds[0]}
    return {
        key: Spread(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0)
        for key, values in columns.items()
    }


def require_classifier(runs: TrainedRuns) -> Classifier:
    """The classifier. Raises Skipped if the data has no labels to train one."""
    if runs.classifier is None:
        raise Skipped("The data have no labels, and this needs a classifier.")
    return runs.classifier
