"""Which values a model accepts: one rule, for data in requests and data in files.

A value outside the model's range by no more than rounding is replaced by the bound: scalers compute
1.0000000000000002 for 1. Any other value outside is accepted unless the model's range is bounded,
and counted, as such values make a row unusual. NaN and infinity are never accepted.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentd.bundle import DataSpec

ROUNDING: Final = 1e-6
"""Fraction of the range's width. A value no further outside than this is replaced by the bound."""

_LOWEST: Final = float(np.finfo(np.float32).min)
_HIGHEST: Final = float(np.finfo(np.float32).max)

Counts = NDArray[np.uint32]
"""How many values of each row lie outside the range, shape (rows,)."""


class Checked(NamedTuple):
    """Rows that were checked.

    values:       in the shape and dtype given; a copy only if values were replaced by a bound
    values_outside_range: None: no value lies outside the range
    rejected:     why the model cannot take a row, by row; such rows are unchanged
    """

    values: NDArray[Any]
    values_outside_range: Counts | None
    rejected: dict[int, str]


def check(values: NDArray[Any], x: DataSpec) -> Checked:
    """Check rows, shape (rows, *shape), of any dtype, against the range. The number in a
    categorical column must be that of a level."""
    found = _check_range(values, x)
    if not x.columns:
        return found
    for row, reason in _bad_levels(found.values, x).items():
        found.rejected.setdefault(row, reason)
    return found


def _check_range(values: NDArray[Any], x: DataSpec) -> Checked:
    if not values.size or (values.dtype.char == "B" and x.range == (0, 255)):
        return Checked(values, None, {})
    low, high = max(x.range[0], _LOWEST), min(x.range[1], _HIGHEST)
    with np.errstate(invalid="ignore"):
        if values.min() >= low and values.max() <= high:  # false where there is NaN
            return Checked(values, None, {})
    flat = values.reshape(len(values), -1)
    outside = ~((flat >= low) & (flat <= high))
    found = flat[outside].astype(np.float64)
    slack = ROUNDING * (high - low)
    rounded = (found >= low - slack) & (found <= high + slack)
    if rounded.any():
        found[rounded] = found[rounded].clip(low, high)
        flat = flat.copy()
        flat[outside] = found
        outside[outside] = ~rounded
    counts = outside.sum(axis=1, dtype=np.uint32)
    rejected = {
        row: reason
        for row in np.flatnonzero(counts).tolist()
        if (reason := _rejection(flat[row][outside[row]], x))
    }
    return Checked(flat.reshape(values.shape), counts if counts.any() else None, rejected)


def _bad_levels(values: NDArray[Any], x: DataSpec) -> dict[int, str]:
    """Why rows with a number that stands for no level are rejected, by row."""
    found: dict[int, str] = {}
    for place, column in enumerate(x.columns):
        if column.is_categorical:
            numbers = values[:, place]
            with np.errstate(invalid="ignore"):  # infinity has no remainder
                level = (numbers >= 0) & (numbers < column.cardinality) & (numbers % 1 == 0)
            for row in np.flatnonzero(~level).tolist():
                last = column.cardinality - 1
                found.setdefault(
                    row,
                    f"holds {numbers[row]:g} in column {column.name!r}; its values are sent "
                    f"as 0 to {last}, and {last} stands for all that GetModel does not list",
                )
    return found


def binarize(x: NDArray[Any], spec: DataSpec) -> NDArray[Any]:
    """x with every element moved to the nearer end of its range; the middle moves up."""
    low, high = spec.range
    values: NDArray[Any] = np.where(x >= (low + high) / 2, high, low).astype(x.dtype)
    return values


def _rejection(outside: NDArray[Any], x: DataSpec) -> str:
    """Why a row with these values outside the range is rejected; "": it is accepted."""
    if not np.isfinite(outside).all():
        return "holds NaN or infinity"
    if not x.bounded:
        return ""
    low, high = x.range
    return (
        f"holds {outside[0]!s}, outside the model's range {low:g} to {high:g}; its likelihood is "
        "not defined there"
    )
