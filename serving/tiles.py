"""Tiles: how a large row is run in parts of one size that overlap, and put together again.

A part's inner edges are wrong: a net sees zeros there instead of the neighboring pixels. So each
part is larger than what is kept of it. If a net sees less far than that, the result is exact, and
the overlap of two parts is cut in its middle. Otherwise it is approximate, and they are blended.

The edges of a row remain edges of its outer parts: what the net adds around a row stays the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentd.bundle import Tile
from latentd.shapes import Axis, Shape, Sizes

Array = NDArray[Any]
Region = tuple[slice, ...]
"""The part of an array of rows that a tile covers."""


@dataclass(frozen=True, slots=True)
class Span:
    """One of the parts of an axis, in lengths of x.

    start, stop: what it covers
    first, last: what is kept of it, up to `last`
    before, after: how far it overlaps with the parts before and after it; 0: there is none
    """

    start: int
    stop: int
    first: int
    last: int
    before: int
    after: int


def spans(length: int, size: int, overlap: int, multiple_of: int) -> list[Span]:
    """The parts of an axis: each has `size`, neighbors overlap at least by `overlap`, the first
    begins with the axis and the last ends with it. All numbers are multiples of `multiple_of`."""
    count = 1 + math.ceil((length - size) / (size - overlap)) if length > size else 1
    room, gaps = length - size, max(1, count - 1)
    starts = [room * i // gaps // multiple_of * multiple_of for i in range(count)]
    overlaps = [a + size - b for a, b in itertools.pairwise(starts)]
    cuts = [
        start + shared // 2 // multiple_of * multiple_of
        for start, shared in zip(starts[1:], overlaps, strict=True)
    ]
    return [
        Span(start, start + size, *kept)
        for start, *kept in zip(
            starts, [0, *cuts], [*cuts, length], [0, *overlaps], [*overlaps, 0], strict=True
        )
    ]


class TilePlan:
    """The parts of rows at one size.

    size:   of each part, along each free axis
    sizes:  of the rows
    along:  the parts of each free axis
    exact:  as Tile.exact
    count:  how many parts a row has
    """

    def __init__(
        self, size: Sizes, sizes: Sizes, along: Mapping[str, Sequence[Span]], exact: bool
    ) -> None:
        self.size, self.exact = size, exact
        self._sizes, self._spans = sizes, along
        self.count = math.prod(map(len, along.values()))

    @classmethod
    def of(cls, tile: Tile, axes: Mapping[str, Axis], sizes: Sizes) -> TilePlan:
        """The parts of rows at these sizes."""
        size = {name: min(tile.size[name], sizes[name]) for name in axes}
        along = {
            name: spans(sizes[name], size[name], tile.overlap[name], axis.multiple_of)
            for name, axis in axes.items()
        }
        return cls(size, sizes, along, tile.exact)

    def split(self, rows: Array, shape: Shape) -> TiledRows:
        """The parts of rows of this shape, row by row."""
        return TiledRows(self, rows, shape)

    def part(self, index: int, shape: Shape) -> Region:
        """What part `index` covers of rows of this shape."""
        return _region(shape, {name: (s.start, s.stop) for name, s in self._along(index).items()})

    def kept(self, index: int, shape: Shape) -> tuple[Region, Region]:
        """What is kept of part `index`: where it is in a row of this shape, and in the part."""
        part = self._along(index)
        return (
            _region(shape, {name: (s.first, s.last) for name, s in part.items()}),
            _region(
                shape, {name: (s.first - s.start, s.last - s.start) for name, s in part.items()}
            ),
        )

    def assemble(self, tiles: Array, shape: Shape) -> Array:
        """The rows, (rows, *shape) in the dtype of the parts, of their parts in the order of
        `split`."""
        parts = tiles.reshape(-1, self.count, *tiles.shape[1:])
        whole = (len(parts), *shape.at(self._sizes))
        if self.exact:
            rows: Array = np.empty(whole, tiles.dtype)
            for index in range(self.count):
                there, here = self.kept(index, shape)
                rows[there] = parts[:, index][here]
            return rows
        blended = np.zeros(whole, np.float32)
        ramps = {
            dim: {
                span: _ramps(span, self._spans[dim.axis], dim.divisor)
                for span in self._spans[dim.axis]
            }
            for dim in shape.dims
            if dim.axis
        }
        for index in range(self.count):
            along, weights = self._along(index), np.ones(1, np.float32)
            for dim in shape.dims:
                weights = weights[..., None]
                if dim.axis:
                    weights = weights * ramps[dim][along[dim.axis]]
            blended[self.part(index, shape)] += parts[:, index] * weights
        return blended if tiles.dtype.char == "f" else np.rint(blended).astype(tiles.dtype)

    def _along(self, index: int) -> dict[str, Span]:
        """Part `index`, along each free axis; along the last one neighbors follow one another."""
        part = {}
        for name, along in reversed(list(self._spans.items())):
            index, number = divmod(index, len(along))
            part[name] = along[number]
        return part


class TiledRows:
    """The parts of rows, each copied only when it is asked for. It has what the queue and a batch
    need of an array."""

    def __init__(self, plan: TilePlan, rows: Array, shape: Shape) -> None:
        self._plan, self._rows, self._shape = plan, rows, shape
        self.shape = (len(rows) * plan.count, *shape.at(plan.size))
        self.nbytes = rows.nbytes

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice) -> Array:
        """Copies of the parts start..stop, (parts, *shape of a part); a step is ignored."""
        start, stop, _ = index.indices(len(self))
        parts = np.empty((stop - start, *self.shape[1:]), self._rows.dtype)
        for into, number in zip(parts, range(start, stop), strict=True):
            row, part = divmod(number, self._plan.count)
            into[:] = self._rows[row : row + 1][self._plan.part(part, self._shape)][0]
        return parts


def _region(shape: Shape, bounds: Mapping[str, tuple[int, int]]) -> Region:
    """Bounds in lengths of x, as a region of rows of this shape."""
    region = [slice(None)]
    for dim in shape.dims:
        first, stop = bounds[dim.axis] if dim.axis else (0, dim.length)
        region.append(slice(first // dim.divisor, stop // dim.divisor))
    return tuple(region)


def _ramps(span: Span, all_spans: Sequence[Span], divisor: int) -> NDArray[np.float32]:
    """How much the numbers of one part count along an axis, in lengths of x divided by `divisor`:
    linear ramps, which for all parts together are 1 everywhere."""
    start, stop = span.start // divisor, span.stop // divisor
    total = np.zeros(stop - start)
    for other in all_spans:
        first, last = max(start, other.start // divisor), min(stop, other.stop // divisor)
        if first < last:
            ramp, begin = _ramp(other, divisor), other.start // divisor
            total[first - start : last - start] += ramp[first - begin : last - begin]
    return (_ramp(span, divisor) / total).astype(np.float32)


def _ramp(span: Span, divisor: int) -> NDArray[np.float64]:
    size = (span.stop - span.start) // divisor
    at, ramp = np.arange(size) + 0.5, np.ones(size)
    if span.before:
        ramp = np.minimum(ramp, at * divisor / span.before)
    if span.after:
        ramp = np.minimum(ramp, (size - at) * divisor / span.after)
    return ramp
