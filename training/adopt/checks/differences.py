"""How far the outputs of two runs are apart, against what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from latentd.training.array import Array
from latentd.training.tolerances import Tolerance


class Difference(NamedTuple):
    """The largest difference of one output, and whether all of them are allowed."""

    largest: float
    allowed: bool


def between(found: Array, expected: Array, tolerance: Tolerance) -> Difference:
    """Compare values; a shape or a kind of numbers that differs is never allowed."""
    if found.shape != expected.shape or found.dtype.kind != expected.dtype.kind:
        return Difference(float("inf"), False)
    wide = expected.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        difference = np.abs(found.astype(np.float64) - wide)
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))  # finite or not
    difference[same] = 0
    allowed: Any = tolerance.levels
    if expected.dtype != np.uint8:
        # The terms of a sum decide its rounding error, even if they cancel to almost nothing.
        scale = max(1.0, float(np.abs(wide).max(initial=0)))
        allowed = tolerance.atol * scale + tolerance.rtol * np.abs(wide)
    return Difference(
        float(difference.max(initial=0)), bool((same | (difference <= allowed)).all())
    )


def format_largest(largest: Mapping[str, float]) -> str:
    """{"mean": 1e-6, "x": 1.0} -> "mean 1e-06, x 1"."""
    return ", ".join(f"{name} {value:.2g}" for name, value in largest.items())
