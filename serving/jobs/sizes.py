"""The sizes of rows, where the rows of an input have several: plan.sizes, and batches of one size.

plan.sizes has four bytes for each free axis of each row: its length, or 0 if the model does not
take the row's size. Such a row is quarantined when it is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from latentd.bundle import RowShapes
from latentd.errors import ConfigError

Lengths = NDArray[np.uint32]
"""The length of each free axis in each row: shape (rows, axes). 0: none."""

Size = tuple[int, ...]
"""The length of each free axis; () or zeros: the default size."""

_DTYPE: Final = np.dtype("<u4")


def collect(shapes: Iterable[RowShapes | None], axes: int) -> Lengths:
    """The lengths of rows with these shapes; None: the model does not take the row."""
    zeros = (0,) * axes
    found = [zeros if row is None else row.key for row in shapes]
    return np.array(found, _DTYPE).reshape(-1, axes)


def common(lengths: Lengths) -> Size | None:
    """The size of all rows that have one; None: they have several."""
    known = lengths[lengths.all(axis=1)]
    if not len(known):
        return ()
    return tuple(known[0].tolist()) if (known == known[0]).all() else None


def runs(lengths: Lengths) -> Iterator[tuple[int, Size]]:
    """Rows of one size that follow each other: their number and size."""
    if len(lengths):
        changes = np.flatnonzero((lengths[1:] != lengths[:-1]).any(axis=1)) + 1
        starts, stops = [0, *changes.tolist()], [*changes.tolist(), len(lengths)]
        for start, stop in zip(starts, stops, strict=True):
            yield stop - start, tuple(lengths[start].tolist())


def batches(
    lengths: Lengths, limit: Callable[[Size], int], consecutive: bool
) -> list[NDArray[np.int64]]:
    """The batches of these rows: the numbers of the rows of each, in ascending order. The rows of a
    batch have one size, apart from rows without one.

    limit:       the number of rows of a batch of this size
    consecutive: the rows of a batch follow each other
    """
    groups: list[tuple[Size, NDArray[np.int64]]] = []
    if consecutive:
        start = 0
        for count, size in runs(_filled(lengths)):
            groups.append((size, np.arange(start, start + count)))
            start += count
    elif len(lengths):
        distinct, group = np.unique(lengths, axis=0, return_inverse=True)
        order = np.argsort(group.reshape(-1), kind="stable")
        stops = np.cumsum(np.bincount(group.reshape(-1)))
        members = np.split(order, stops[:-1])
        groups = list(zip(map(tuple, distinct.tolist()), members, strict=True))
    found = []
    for size, rows in groups:
        most = limit(size)
        found += [rows[at : at + most] for at in range(0, len(rows), most)]
    return found


def _filled(lengths: Lengths) -> Lengths:
    """Rows without a size get that of the row before them."""
    has_size = lengths.all(axis=1)
    before = np.maximum.accumulate(np.where(has_size, np.arange(len(lengths)), 0))
    return lengths[before]


class SizeFile:
    """plan.sizes. Memory holds only the rows that are read."""

    def __init__(self, path: Path, axes: int) -> None:
        self._file, self._axes = path.open("rb", buffering=0), axes

    def read(self, first: int, count: int) -> Lengths:
        """The lengths of rows first..first + count. Raises ConfigError if the file was cut."""
        row_bytes = _DTYPE.itemsize * self._axes
        data = os.pread(self._file.fileno(), count * row_bytes, first * row_bytes)
        if len(data) != count * row_bytes:
            raise ConfigError(
                f"{self._file.name} is shorter than the plan says. Use another --output."
            )
        return np.frombuffer(data, _DTYPE).reshape(-1, self._axes)

    def close(self) -> None:
        self._file.close()
