"""Quantiles of the scores of rows, as a manifest has them. It needs no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from latentd.training.errors import TrainingError

ROWS: Final = 20_000  # limit, evenly picked: the 99.9th percentile then rests on 20 rows
_LEAST: Final = 50  # percent: with less, most rows would be outliers
LEVELS: Final = (0.0, 0.1, 0.5, *map(float, range(1, 100)), 99.5, 99.9, 100.0)


def evenly_picked(count: int, limit: int = ROWS) -> npt.NDArray[np.int64]:
    """The numbers of at most `limit` rows, of so many."""
    rows = min(limit, count)
    return np.arange(rows) * count // max(1, rows)


def check_percentile(percentile: float | None) -> None:
    """Raise TrainingError if it cannot be that of a threshold, or is a mistake: a fraction, or the
    share of outliers."""
    if percentile is None or _LEAST <= percentile <= 100:
        return
    meant = ""
    if 0 < percentile < 100:
        likely = 100 * percentile if 0.5 <= percentile < 1 else 100 - percentile
        meant = (
            f" {percentile:g} would make outliers of {100 - percentile:g} % of the training rows. "
            f"Did you mean {likely:g}?"
        )
    raise TrainingError(
        f"--threshold-percentile {percentile:g}: expected a percentage from {_LEAST} to 100, such "
        f"as 99.{meant}"
    )


def error_at(scores: Mapping[str, Any], percentile: float) -> float:
    """The reconstruction error at a percentile, in nats; linear between the quantiles of
    Manifest.training_scores."""
    return float(np.interp(percentile, scores["levels"], scores["reconstruction_error"]))


def score_quantiles(
    error: npt.NDArray[np.float64],
    kl: npt.NDArray[np.float64],
    contributions: npt.NDArray[np.float32] | None = None,
) -> dict[str, Any]:
    """Manifest.training_scores, at LEVELS percent.

    error, kl: the reconstruction error and the KL of each row, in nats. contributions: of rows with
    columns, what each column adds to the error, (rows, columns)
    """
    scores = {"reconstruction_error": error, "kl": kl, "elbo": -error - kl}
    found: dict[str, Any] = {"rows": len(error), "levels": list(LEVELS)}
    found |= {name: np.percentile(s, LEVELS).tolist() for name, s in scores.items()}
    if contributions is not None:
        medians = np.median(contributions, axis=0).astype(np.float64)
        found["median_contributions"] = [float(f"{median:.6g}") for median in medians]
    return found
