"""The result of every reader: rows that fit the model, and bad rows with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentd import ranges
from latentd.bundle import DataSpec
from latentd.codec import Array
from latentd.errors import ConfigError
from latentd.ranges import Counts


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be reconstructed. row: its number within the input, or, after RowReader has
    added the offset of the input, within the job."""

    row: int
    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of one input.

    rows: numbers of the rows of x, int64 (good,), ascending
    ids:  a name for each row, for people and joins
    x:    in the model's dtype, (good, *shape)
    bad:  rows that are not in x
    outside: number of values of each row of x outside the model's range; None: all are 0
    """

    rows: NDArray[np.int64]
    ids: Sequence[str]
    x: Array
    bad: list[BadRow]
    outside: Counts | None = None

    @property
    def counts_outside(self) -> Counts:
        """`outside`, or zeros for None."""
        return np.zeros(len(self.rows), np.uint32) if self.outside is None else self.outside


class Reader(Protocol):
    """An open input. Its rows are numbered from 0."""

    rows: int

    def read(self, start: int, stop: int) -> Chunk:
        """Rows start..stop. Reading forward is cheap for every kind, backward for some. Raises
        BadData if the input is truncated or damaged."""

    def close(self) -> None: ...


def check_signature(dtype: np.dtype[Any], shape: tuple[int, ...], x: DataSpec, name: str) -> None:
    """Raise ConfigError for an array whose rows cannot be the model's; shape: of one row.

    Axes of length 1 do not matter. Floats of any width are read as float32, integers of any width
    as bytes. Neither is read as the other: they usually differ by a factor of 255.
    """
    fits = dtype.kind in ("iu" if x.dtype == "uint8" else "f")
    if not fits or [n for n in shape if n != 1] != [n for n in x.shape if n != 1]:
        raise ConfigError(
            f"{name} has rows of {dtype} {list(shape)}; the model expects {x.dtype} "
            f"{list(x.shape)}. Convert it like the training data."
        )


def make_chunk(values: Array, ids: Sequence[str], start: int, x: DataSpec) -> Chunk:
    """A chunk of rows numbered from `start`. Rows with values the model cannot take are bad."""
    values = values.reshape(len(values), *x.shape)
    rejected: dict[int, str] = {}
    if x.dtype == "float32":
        with np.errstate(over="ignore"):  # a value that becomes infinite makes a bad row
            values = values.astype(np.float32, copy=False)
    elif values.dtype != np.uint8:
        flat = values.reshape(len(values), -1)
        wide = (flat < 0) | (flat > 255)
        for row in np.flatnonzero(wide.any(axis=1)).tolist():
            rejected[row] = f"holds {flat[row][wide[row]][0]}, which is not a byte (0 to 255)"
    found = ranges.check(values, x)
    rejected = found.rejected | rejected
    rows, taken = np.arange(start, start + len(values)), found.values
    if not rejected:
        return Chunk(rows, ids, taken.astype(x.dtype, copy=False), [], found.out_of_range)
    bad = [BadRow(start + row, ids[row], why) for row, why in sorted(rejected.items())]
    good = np.ones(len(values), bool)
    good[list(rejected)] = False
    kept = [ids[row] for row in np.flatnonzero(good).tolist()]
    outside = None if found.out_of_range is None else found.out_of_range[good]
    return Chunk(rows[good], kept, taken[good].astype(x.dtype, copy=False), bad, outside)
