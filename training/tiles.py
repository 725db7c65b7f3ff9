"""Measures how graphs run large rows in tiles: exactly, or with how much noise.

It takes any pair of graphs with free axes, and needs no PyTorch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import numpy as np

from latentd.bundle import Manifest, Tile
from latentd.shapes import Shape, Sizes
from latentd.tiles import Span, TilePlan
from latentd.training.array import Array
from latentd.training.onnx_session import cpu_session, shrink_after_run
from latentd.training.tolerances import Tolerance

Run = Callable[[Array], Mapping[str, Array]]
"""Runs a graph: rows in, all of its outputs by name."""

_GROWTH: Final = (1, 2, 4, 8)
"""The sizes of tiles that are tried, as multiples of the default size."""
MAX_ELEMENTS: Final = 1 << 22
"""In a row that is run whole, to be compared: an image of 1024 x 1024, say."""
_STEPS: Final = 16  # overlaps are tried in steps of this part of a tile
_MAX_DECIBELS: Final = 200.0


def measure(
    manifest: Manifest,
    encoder: bytes,
    decoder: bytes,
    rows: Array,
    tolerance: Tolerance,
    threads: int = 1,
    max_elements: int = MAX_ELEMENTS,
) -> dict[str, Tile]:
    """The manifest's `tiles`; {} if no axis has room for two tiles.

    rows: a real one or more, at any one size
    tolerance: between rows in tiles and whole rows, for tiles to be exact
    max_elements: in a row that is run whole

    Two rows of two tiles along each axis are made, one by mirroring and one by enlarging. They are
    run whole and in tiles. The smallest tiles are chosen that are exact with an overlap of a
    quarter at most. If no size is, the largest is tried with overlaps up to a half. If that fails
    too, tiles of the largest size with an overlap of a quarter are approximate.
    """
    sizes = _tile_sizes(manifest, max_elements)
    if not sizes:
        return {}
    x_shape, z_shape = manifest.x.shape, manifest.z.shape
    params = Shape.parse([len(manifest.parameters), *x_shape.json])
    low, high = manifest.x.range
    levels = high - low if math.isfinite(high - low) else 0.0
    encoding = _Graph(
        manifest,
        _load(encoder, threads),
        x_shape,
        {"mean": z_shape, "log_var": z_shape},
        lambda sizes: _large_rows(rows, manifest.x.shape, sizes),
        lambda mean: float((mean.astype(float) ** 2).mean()),
    )
    decoding = _Graph(
        manifest,
        _load(decoder, threads),
        z_shape,
        {"x": x_shape, "params": params},
        lambda sizes: encoding.whole(sizes)[1]["mean"],
        lambda x: (levels or float(np.ptp(x))) ** 2,
    )
    return {
        "encoder": encoding.best(sizes, tolerance),
        "decoder": decoding.best(sizes, tolerance),
    }


class _Graph:
    """One graph.

    shape, shapes: of its input and outputs
    inputs: whole rows at these sizes
    power: of the signal in one row of the first output
    """

    def __init__(
        self,
        manifest: Manifest,
        run: Run,
        shape: Shape,
        shapes: Mapping[str, Shape],
        inputs: Callable[[Sizes], Array],
        power: Callable[[Array], float],
    ) -> None:
        self._manifest, self._run, self._shape, self._shapes = manifest, run, shape, shapes
        self._inputs, self._power = inputs, power
        self._whole: dict[tuple[int, ...], tuple[Array, dict[str, Array]]] = {}

    def whole(self, sizes: Sizes) -> tuple[Array, dict[str, Array]]:
        """Whole rows at these sizes, and the outputs for them."""
        key = tuple(sizes.values())
        if key not in self._whole:
            inputs = self._inputs(sizes)
            outputs = [self._run(inputs[i : i + 1]) for i in range(len(inputs))]  # little memory
            names = outputs[0]
            self._whole[key] = inputs, {n: np.concatenate([o[n] for o in outputs]) for n in names}
        return self._whole[key]

    def best(self, sizes: list[Sizes], tolerance: Tolerance) -> Tile:
        """The tile to use, by the rule of `measure`; sizes: ascending."""
        too_small = dict.fromkeys(self._manifest.axes, -1)  # overlaps, whatever the tile's size
        for number, size in enumerate(sizes, 1):
            exact, least = None, math.inf
            last = number == len(sizes)
            for overlap in self._overlaps(size, _STEPS // 2 if last else _STEPS // 4):
                if all(overlap[name] <= length for name, length in too_small.items()):
                    continue
                tile = Tile(size, overlap, exact=True)
                error, difference = self._compare(tile, tolerance)
                if error > 1:
                    too_small = dict(overlap)
                    continue
                # What is just within the tolerance may still be what the net sees, and no rounding.
                if exact and error >= least / 2:
                    break
                exact, least = dataclasses.replace(tile, max_abs_difference=difference), error
            if exact:
                return exact
        overlap = {
            name: min(
                max(axis.multiple_of, size[name] // 4 // axis.multiple_of * axis.multiple_of),
                size[name] // 2 // axis.multiple_of * axis.multiple_of,
            )
            for name, axis in self._manifest.axes.items()
        }
        tile = Tile(size, overlap, exact=False)
        return dataclasses.replace(tile, decibels=self._decibels(tile))

    def _overlaps(self, size: Sizes, steps: int) -> Iterator[Sizes]:
        """Ascending; each half is a multiple that an axis takes, so that tiles can be cut there."""
        previous: Sizes = {}
        for step in range(steps + 1):
            overlap = {
                name: size[name] * step // _STEPS // (2 * axis.multiple_of) * 2 * axis.multiple_of
                for name, axis in self._manifest.axes.items()
            }
            if overlap != previous:
                yield overlap
            previous = overlap

    def _compare(self, tile: Tile, tolerance: Tolerance) -> tuple[float, float]:
        """The difference from whole rows as a part of what is allowed, and the largest one of the
        first output. It is measured as far from a tile's inner edges as the overlap lets a tile be
        used. Beyond the tolerance the search for the largest one stops."""
        sizes, error, largest = _row_size(self._manifest, tile.size), 0.0, 0.0
        plan = TilePlan(
            {name: min(tile.size[name], length) for name, length in sizes.items()},
            sizes,
            {
                name: _edges_and_middle(
                    sizes[name], tile.size[name], tile.overlap[name], axis.multiple_of
                )
                for name, axis in self._manifest.axes.items()
            },
            exact=True,
        )
        inputs, outputs = self.whole(sizes)
        first, *_ = self._shapes
        # A tile in the middle has the most neighbors, so it fails first.
        order = sorted(range(plan.count), key=lambda index: abs(index - plan.count // 2))
        for row in range(len(inputs)):
            for index in order:
                part = plan.part(index, self._shape)
                tiled = self._run(np.ascontiguousarray(inputs[row : row + 1][part]))
                for name, output in outputs.items():
                    shape = self._shapes[name]
                    there, here = plan.kept(index, shape)
                    whole = output[row : row + 1]
                    difference = np.abs(tiled[name][here].astype(float) - whole[there])
                    error = max(error, _error(difference, whole, whole[there], tolerance))
                    if error > 1:
                        return error, largest
                    if name == first:
                        largest = max(largest, float(difference.max()))
        return error, largest

    def _decibels(self, tile: Tile) -> float:
        """The signal-to-noise ratio of the worse row."""
        sizes = _row_size(self._manifest, tile.size, tile.overlap)
        plan = TilePlan.of(tile, self._manifest.axes, sizes)
        (name, shape), *_ = self._shapes.items()
        inputs, outputs = self.whole(sizes)
        found = []
        for row, whole in enumerate(outputs[name]):
            tiles = plan.split(inputs[row : row + 1], self._shape)
            parts = [self._run(tiles[i : i + 1])[name] for i in range(plan.count)]
            tiled = plan.assemble(np.concatenate(parts), shape)[0]
            noise = float(((tiled.astype(float) - whole) ** 2).mean())
            found.append(10 * math.log10(self._power(whole) / noise) if noise else _MAX_DECIBELS)
        return round(min(found), 2)


def _error(difference: Array, whole: Array, expected: Array, tolerance: Tolerance) -> float:
    """A difference as a part of what is allowed."""
    if expected.dtype == np.uint8:
        # Noise within `atol` moves few numbers to the next level.
        beyond = difference.max() > tolerance.levels
        return math.inf if beyond else float(difference.mean()) / (tolerance.atol * 255)
    scale = max(1.0, float(np.abs(whole).max()))
    allowed = tolerance.atol * scale + tolerance.rtol * np.abs(expected)
    return float((difference / allowed).max())


def _tile_sizes(manifest: Manifest, max_elements: int) -> list[Sizes]:
    """The sizes of tiles to try, ascending: the default size and multiples of it, or else
    the largest part of it for which rows are neither too large nor refused."""

    def fitting(growths: Iterable[float]) -> Iterator[Sizes]:
        for growth in growths:
            size = {n: axis.nearest(int(axis.default * growth)) for n, axis in axes.items()}
            row = _row_size(manifest, size)
            if row != size and manifest.at(row).x.size <= max_elements:
                yield size

    axes, found = manifest.axes, list[Sizes]()
    parts = [1 / growth for growth in _GROWTH[1:]]
    for size in list(fitting(_GROWTH)) or list(fitting(parts))[:1]:
        if size not in found:
            found.append(size)
    return found


def _row_size(manifest: Manifest, size: Sizes, overlap: Sizes | None = None) -> Sizes:
    """Rows of two tiles along each axis, if that is allowed."""
    return {
        name: min(axis.max, 2 * size[name] - (overlap[name] if overlap else 0))
        for name, axis in manifest.axes.items()
    }


def _edges_and_middle(length: int, size: int, overlap: int, multiple_of: int) -> list[Span]:
    """The parts at both ends of an axis, and one between them that begins at an odd multiple."""
    if length <= size:
        return [Span(0, length, 0, length, 0, 0)]
    shared = overlap // 2
    middle = (length - size) // (2 * multiple_of) * multiple_of
    if middle // multiple_of % 2 == 0 and middle + multiple_of < length - size:
        middle += multiple_of
    return [
        Span(0, size, 0, size - shared, 0, overlap),
        Span(middle, middle + size, middle + shared, middle + size - shared, overlap, overlap),
        Span(length - size, length, length - size + shared, length, overlap, 0),
    ]


def _large_rows(rows: Array, shape: Shape, sizes: Sizes) -> Array:
    """Two rows at these sizes to measure tiles with."""
    free = [axis for axis, dim in enumerate(shape.dims) if dim.axis]
    lengths = shape.at(sizes)
    return np.stack([mirrored(rows[0], lengths), enlarged(rows[-1], lengths, free)])


def mirrored(row: Array, shape: tuple[int, ...]) -> Array:
    """A row continued by its mirror images, and cut to this shape: as much detail as it has."""
    more = [(0, max(0, wanted - have)) for wanted, have in zip(shape, row.shape, strict=True)]
    return np.pad(row, more, mode="symmetric")[tuple(slice(length) for length in shape)]


def enlarged(row: Array, shape: tuple[int, ...], axes: list[int]) -> Array:
    """A row stretched along these axes to this shape: its parts differ from one another."""
    values = row.astype(np.float32)
    for axis in axes:
        have, wanted = values.shape[axis], shape[axis]
        at = np.clip((np.arange(wanted) + 0.5) * have / wanted - 0.5, 0, have - 1)
        left = np.minimum(at.astype(int), max(have - 2, 0))
        share = np.expand_dims((at - left).astype(np.float32), tuple(range(1, values.ndim - axis)))
        right = np.take(values, np.minimum(left + 1, have - 1), axis)
        values = np.take(values, left, axis) * (1 - share) + right * share
    if row.dtype == np.uint8:
        values = np.rint(values)
    return values.astype(row.dtype)


def _load(graph: bytes, threads: int) -> Run:
    session = cpu_session(graph, threads)
    input_name = session.get_inputs()[0].name
    names = [output.name for output in session.get_outputs()]
    run_options = shrink_after_run()
    return lambda x: dict(zip(names, session.run(names, {input_name: x}, run_options), strict=True))
