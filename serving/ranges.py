"""Which values a model takes: one rule for data that is sent and data that is read from files.

A value within rounding of the model's range is taken as the bound: scalers give 1.0000000000000002
for 1. A value beyond it is taken where the likelihood is defined there, and counted, for it is what
makes a row unusual. NaN and infinity are never taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from latentd.bundle import DataSpec

ROUNDING: Final = 1e-6
"""Of the range's width. A value that lies no further beyond a bound is taken as the bound."""
UNBOUNDED: Final = frozenset({"gaussian"})
"""The likelihoods that are defined for every number; the others only for the model's range."""

Counts = NDArray[np.uint32]
"""How many values of each row lie outside the range, shape (rows,)."""


@dataclass(frozen=True, slots=True)
class Checked:
    """Rows that were checked.

    values:  as the model takes them, in the shape and dtype they came in; a copy only where some
             were taken as the bound
    outside: None where no value lies outside the range
    refused: by row, why the model cannot take it; such rows are as they came
    """

    values: NDArray[Any]
    outside: Counts | None
    refused: dict[int, str]


def check(values: NDArray[Any], x: DataSpec, likelihood: str) -> Checked:
    """Check rows, shape (rows, *shape), of any dtype, against the range and the likelihood."""
    low, high = x.range
    if not values.size or (values.dtype == np.uint8 and (low, high) == (0, 255)):
        return Checked(values, None, {})
    with np.errstate(invalid="ignore"):
        if values.min() >= low and values.max() <= high:  # false where there is NaN
            return Checked(values, None, {})
    flat = values.reshape(len(values), -1)
    beyond = ~((flat >= low) & (flat <= high))
    found = flat[beyond].astype(np.float64)
    slack = ROUNDING * (high - low)
    rounded = (found >= low - slack) & (found <= high + slack)
    if rounded.any():
        found[rounded] = found[rounded].clip(low, high)
        flat = flat.copy()
        flat[beyond] = found
        beyond[beyond] = ~rounded
    counts = beyond.sum(axis=1, dtype=np.uint32)
    refused = {
        row: why
        for row in np.flatnonzero(counts).tolist()
        if (why := _why(flat[row][beyond[row]], x, likelihood))
    }
    return Checked(flat.reshape(values.shape), counts if counts.any() else None, refused)


def _why(outside: NDArray[Any], x: DataSpec, likelihood: str) -> str:
    """Why a row with these values outside the range is refused; "": it is not."""
    if not np.isfinite(outside).all():
        return "holds NaN or infinity"
    if likelihood in UNBOUNDED:
        return ""
    low, high = x.range
    return (
        f"holds {outside[0]:g}, outside the model's range {low:g} to {high:g}, beyond which its "
        f"{likelihood} likelihood is not defined"
    )
