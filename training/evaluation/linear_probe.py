"""A linear classifier on the means. Its accuracy shows how well z separates the classes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

ROWS: Final = 10_000  # maximum number of training rows


@dataclass(frozen=True)
class ProbeResult:
    """The test accuracy of logistic regression on standardized features."""

    accuracy: float
    train_rows: int
    test_rows: int
    classes: int


def linear_probe(features: Tensor, y: Tensor, test_features: Tensor, test_y: Tensor) -> ProbeResult:
    """features: float32 (rows, values); y: int64 (rows,), at least two classes."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, y = features[:ROWS], y[:ROWS]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    with warnings.catch_warnings():
        # Features close to zero never converge; the last iterate is good enough.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(features.numpy(), y.numpy())
    accuracy = classifier.score(test_features.numpy(), test_y.numpy())
    return ProbeResult(float(accuracy), len(y), len(test_y), len(torch.unique(y)))
