"""The result of every reader: rows that fit the model, and bad rows with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentd import ranges, texts
from latentd.bundle import DataSpec, RowShapes
from latentd.codec import Array
from latentd.errors import ConfigError, InvalidArgument
from latentd.model_description import ModelDescription
from latentd.ranges import Counts
from latentd.shapes import Shape, SizeError


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be reconstructed. row: its number within the input, or, after RowReader has
    added the offset of the input, within the job."""

    row: int
    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of one input, all of one size.

    rows: numbers of the rows of x, int64 (good,), ascending
    ids:  a name for each row, for people and joins
    x:    in the model's dtype, (good, *shape)
    bad:  rows that are not in x
    values_outside_range: how many values of each row of x; None: all are 0
    """

    rows: NDArray[np.int64]
    ids: Sequence[str]
    x: Array
    bad: list[BadRow]
    values_outside_range: Counts | None = None

    @property
    def counts_outside_range(self) -> Counts:
        """`values_outside_range`, or zeros for None."""
        found = self.values_outside_range
        return np.zeros(len(self.rows), np.uint32) if found is None else found


def join(chunks: Sequence[Chunk], x: DataSpec) -> Chunk:
    """All rows as one chunk. Rows whose size is not that of the first row become bad rows.

    x: of a chunk without rows
    """
    filled = [chunk for chunk in chunks if len(chunk.rows)]
    bad = [row for chunk in chunks for row in chunk.bad]
    same = []
    for chunk in filled:
        try:
            check_same_size(chunk.x.shape[1:], filled[0].x.shape[1:])
            same.append(chunk)
        except InvalidArgument as error:
            names = zip(chunk.rows.tolist(), chunk.ids, strict=True)
            bad += [BadRow(row, name, error.reason) for row, name in names]
    if len(chunks) == len(same) == 1:
        return chunks[0]
    return Chunk(
        np.concatenate([c.rows for c in same] or [np.empty(0, np.int64)]),
        [name for c in same for name in c.ids],
        np.concatenate([c.x for c in same] or [np.empty((0, *x.shape), x.dtype)]),
        sorted(bad, key=lambda row: row.row),
        np.concatenate([c.counts_outside_range for c in same] or [np.empty(0, np.uint32)]),
    )


class Reader(Protocol):
    """An open input. Its rows are numbered from 0."""

    rows: int

    def read(self, start: int, stop: int) -> Chunk:
        """Rows start..stop; those whose size is not that of the first are bad rows.

        Reading forward is cheap for every kind, backward for some. Raises BadData if the input is
        truncated or damaged.
        """

    def close(self) -> None: ...


def check_signature(
    dtype: np.dtype[Any], shape: tuple[int, ...], model: ModelDescription, name: str
) -> RowShapes:
    """The shapes of an array's rows; shape: of one row. Raises ConfigError if the model does not
    take them.

    Axes of length 1 do not matter. Floats of any width are read as float32, integers of any width
    as bytes. Neither is read as the other: they usually differ by a factor of 255.
    """
    what = f"{name} has rows of {dtype} {list(shape)}"
    if dtype.kind in ("iu" if model.x.dtype == "uint8" else "f"):
        try:
            return model.shapes_of_x(_aligned(shape, model.x.shape))
        except SizeError as error:
            if error.axis:
                raise ConfigError(f"{what}: {error}") from None
    raise ConfigError(
        f"{what}; the model expects {model.x.dtype} {model.x.shape}. Convert it like the training "
        "data."
    )


def _aligned(lengths: tuple[int, ...], shape: Shape) -> tuple[int, ...]:
    """The lengths with an axis of length 1 wherever `shape` has one, and nowhere else."""
    ones = [dim.length == 1 for dim in shape.dims]
    if [n == 1 for n in lengths] == ones:
        return lengths
    others = iter([n for n in lengths if n != 1])
    return tuple([1 if one else next(others, 0) for one in ones] + list(others))


def check_same_size(shape: tuple[int, ...], first: tuple[int, ...]) -> None:
    """Raise InvalidArgument unless a row has the shape of the first row that is read with it."""
    if shape != first:
        raise InvalidArgument(
            "x",
            f"has shape {list(shape)}, but the first row has {list(first)}",
            "Rows that run together have one size",
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
    if x.is_text:
        rejected = texts.faults(values) | rejected
    rejected = found.rejected | rejected
    rows, taken = np.arange(start, start + len(values)), found.values
    if not rejected:
        return Chunk(rows, ids, taken.astype(x.dtype, copy=False), [], found.values_outside_range)
    bad = [BadRow(start + row, ids[row], why) for row, why in sorted(rejected.items())]
    good = np.ones(len(values), bool)
    good[list(rejected)] = False
    kept = [ids[row] for row in np.flatnonzero(good).tolist()]
    outside = None if found.values_outside_range is None else found.values_outside_range[good]
    return Chunk(rows[good], kept, taken[good].astype(x.dtype, copy=False), bad, outside)
