"""What every reader gives: rows that fit the model, and those that do not with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.bundle import XSpec
from serving.errors import ConfigError

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be reconstructed. row: counted over the whole job, once a reader's count
    within its own input has been shifted."""

    row: int
    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of one input.

    rows: numbers of the rows of x, int64 (good,), ascending
    ids:  a name for each, for people and joins
    x:    in the model's dtype, (good, *shape)
    bad:  those left out
    """

    rows: NDArray[np.int64]
    ids: Sequence[str]
    x: Array
    bad: list[BadRow]


class Reader(Protocol):
    """One input, opened. Rows are counted from 0 within it."""

    rows: int

    def read(self, start: int, stop: int) -> Chunk:
        """Rows start..stop. Reading forward is cheap for every kind, backward for some. Raises
        BadData where the input ends early or is damaged."""

    def close(self) -> None: ...


def check_form(dtype: np.dtype[Any], shape: tuple[int, ...], x: XSpec, name: str) -> None:
    """Refuse an array whose rows cannot be the model's; `shape` is one row's.

    Axes of length 1 may be there or not. Floats of any width are read as float32, integers of any
    width as bytes; but neither as the other, for they are mostly scaled by 255 between them.
    """
    fits = dtype.kind in ("iu" if x.dtype == "uint8" else "f")
    if not fits or [n for n in shape if n != 1] != [n for n in x.shape if n != 1]:
        raise ConfigError(
            f"{name} holds rows of {dtype} {list(shape)}; the model takes {x.dtype} "
            f"{list(x.shape)}. Convert it as the training data was."
        )


def checked(values: Array, ids: Sequence[str], start: int, x: XSpec) -> Chunk:
    """A chunk of rows numbered from `start`; those with numbers the model cannot have are bad."""
    values = values.reshape(len(values), *x.shape)
    if x.dtype == "float32":
        with np.errstate(over="ignore"):  # what becomes infinite is a bad row
            values = values.astype(np.float32, copy=False)
    rows = np.arange(start, start + len(values))
    low, high = x.range
    if values.dtype == np.uint8 and (low, high) == (0, 255):
        return Chunk(rows, ids, values, [])
    flat = values.reshape(len(values), -1)
    with np.errstate(invalid="ignore"):
        good = ((flat >= low) & (flat <= high)).all(axis=1)  # NaN compares false
    if good.all():
        return Chunk(rows, ids, values.astype(x.dtype, copy=False), [])
    bad = [
        BadRow(int(rows[i]), ids[i], f"holds {_worst(flat[i], x)}, outside {low:g} to {high:g}")
        for i in np.flatnonzero(~good).tolist()
    ]
    kept = [ids[i] for i in np.flatnonzero(good).tolist()]
    return Chunk(rows[good], kept, values[good].astype(x.dtype, copy=False), bad)


def _worst(row: Array, x: XSpec) -> str:
    if not np.isfinite(row).all():
        return "NaN or infinity"
    low, high = x.range
    return f"{row[(row < low) | (row > high)][0]:g}"
