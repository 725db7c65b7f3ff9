"""What a graph's runs cost on this machine, at each size of its rows: measured at a few sizes,
estimated between and beyond them."""

from __future__ import annotations

import bisect
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from latentd.bundle import Manifest, RowShapes
from latentd.runtime import memory, profiling
from latentd.runtime.profiling import BatchTiming

MAX_SIZES: Final = 6
"""How many sizes are measured at most."""
_GROWTH: Final = 4  # each measured size has about so many times the elements of the one before
_MAX_ROW_SECONDS: Final = 0.25
"""A size whose single row is expected to take longer is not measured."""

_MIN_RUN_BYTES: Final = 4 << 20
"""Of a run: the process's memory varies by about as much while a small row runs."""
_MAX_POWER: Final = 2.0
"""Costs and memory grow with the square of the elements at most, as attention's do."""

RunRows = Callable[[RowShapes, int], object]
"""Runs a batch of so many rows at one size."""


@dataclass(frozen=True, slots=True)
class SizeProfile:
    """What runs cost at one size.

    elements:  numbers in one row of x
    run_bytes: memory that a run of one row takes; 0: unknown
    """

    x_shape: tuple[int, ...]
    elements: int
    timings: list[BatchTiming]
    run_bytes: int = 0

    @property
    def row_seconds(self) -> float:
        """One row's share of the batch with the best throughput."""
        return min(timing.seconds / timing.rows for timing in self.timings)


@dataclass(frozen=True, slots=True)
class MeasuredProfile:
    """How a graph runs and what that costs: all that another process needs to run it the same.

    batch_rows: the largest batch of rows of the smallest size
    sizes:      ascending; one for a model without free axes
    """

    file_bytes: int
    threads: int  # of ONNX Runtime, for one run
    batch_rows: int
    sizes: list[SizeProfile]

    @property
    def timings(self) -> list[BatchTiming]:
        """Of the smallest size."""
        return self.sizes[0].timings

    @property
    def batch_seconds(self) -> float:
        """Duration of the largest batch."""
        return profiling.seconds_of(self.batch_rows, self.timings)

    def scale(self, elements: int) -> int:
        """What a row of so many elements costs, in rows of the smallest size; at least 1."""
        if len(self.sizes) == 1:
            return max(1, round(elements / self.sizes[0].elements))
        costs = [size.row_seconds for size in self.sizes]
        return max(1, round(self._estimate(elements, costs) / costs[0]))

    def max_batch_rows(self, elements: int) -> int:
        """The largest batch of rows of so many elements."""
        return max(1, self.batch_rows // self.scale(elements))

    def run_bytes(self, elements: int) -> int:
        """Memory that a run of one row of so many elements takes; 0: unknown."""
        measured = [size.run_bytes for size in self.sizes]
        if not all(measured):
            return 0
        return round(self._estimate(elements, measured))

    def max_elements(self, max_bytes: int) -> int:
        """The most elements that a row may have, for its run to fit into so many bytes; 0: unknown
        or unlimited. Rows of the smallest size always may run: they did when this was measured."""
        largest = self.sizes[-1].elements
        if not self.run_bytes(largest):
            return 0
        low, high = 0, max(largest, 1) << 20
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.run_bytes(middle) <= max_bytes else (low, middle)
        return max(low, self.sizes[0].elements)

    def _estimate(self, elements: int, values: Sequence[float]) -> float:
        """The value at a size, from the values at the measured ones: a power law between two
        neighbors; beyond the last, at least in proportion to the elements."""
        known = [size.elements for size in self.sizes]
        if len(known) == 1:
            return values[0] * elements / known[0]
        right = min(max(bisect.bisect_left(known, elements), 1), len(known) - 1)
        a, b = right - 1, right
        slope = math.log(values[b] / values[a]) / math.log(known[b] / known[a])
        if elements > known[b]:
            slope = min(max(slope, 1.0), _MAX_POWER)
        base = b if elements > known[b] else a
        return values[base] * float((elements / known[base]) ** slope)


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """The profiles of a bundle's two graphs."""

    encoder: MeasuredProfile
    decoder: MeasuredProfile

    def to_json(self) -> dict[str, Any]:
        """As `from_json` reads it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> ModelProfile:
        """Read what `to_json` returned. Raises KeyError or TypeError for anything else."""

        def size(one: Mapping[str, Any]) -> SizeProfile:
            timings = [BatchTiming(**timing) for timing in one["timings"]]
            return SizeProfile(**{**one, "timings": timings, "x_shape": tuple(one["x_shape"])})

        def graph(one: Mapping[str, Any]) -> MeasuredProfile:
            return MeasuredProfile(**{**one, "sizes": [size(each) for each in one["sizes"]]})

        return cls(graph(raw["encoder"]), graph(raw["decoder"]))


def sizes_to_measure(manifest: Manifest) -> list[RowShapes]:
    """The smallest size, the default, and larger ones up to the largest, ascending by elements."""
    axes, found = manifest.axes, {s.key: s for s in (manifest.smallest, manifest.default)}
    factor = 1.0
    while axes and len(found) < MAX_SIZES and manifest.largest.key not in found:
        factor *= _GROWTH ** (1 / len(axes))
        lengths = {name: axis.nearest(round(axis.default * factor)) for name, axis in axes.items()}
        shapes = manifest.at(lengths)
        found[shapes.key] = shapes
    distinct = {shapes.x.size: shapes for shapes in found.values()}
    return [distinct[elements] for elements in sorted(distinct)]


def measure(
    sizes: Sequence[RowShapes],
    run: RunRows,
    row_bytes: Callable[[RowShapes], int],
    max_seconds: float,
    idle_ratio: float,
    max_bytes: int = 0,
    clock: profiling.Clock = time.perf_counter,
) -> list[SizeProfile]:
    """Time batches at each of these sizes, ascending, while a row takes a reasonable time.

    run:       runs a graph that has not run yet
    row_bytes: of the input and output of one row
    max_bytes: memory that a run may take: no larger run is tried. 0: memory is not measured
    The two smallest sizes are always measured: they are the ones that will be asked for.
    """
    profiles: list[SizeProfile] = []
    used = _run_bytes(sizes, run, max_bytes) if len(sizes) > 1 else [0]
    for index, (shapes, nbytes) in enumerate(zip(sizes, used, strict=False)):

        def run_rows(rows: int, shapes: RowShapes = shapes) -> object:
            return run(shapes, rows)

        # The batch size is chosen at the smallest size; of the others only the costs are needed.
        longest = max_seconds if index == 0 else max_seconds * profiling.SHORT
        timings = profiling.measure(run_rows, row_bytes(shapes), longest, idle_ratio, clock)
        profiles.append(SizeProfile(shapes.x.shape, shapes.x.size, timings, nbytes))
    return profiles


def _run_bytes(sizes: Sequence[RowShapes], run: RunRows, max_bytes: int) -> list[int]:
    """The memory of a run of one row at each size, up to the last one that is worth a measurement;
    0: not measured.

    ONNX Runtime keeps the memory of its largest run. So if no batch has run before, the growth of
    this process is the memory of a run.
    """
    found: list[int] = []
    before, seconds = memory.private_bytes(), 0.0
    for index, shapes in enumerate(sizes):
        if index > 1:
            growth = shapes.x.size / sizes[index - 1].x.size
            if growth * seconds > _MAX_ROW_SECONDS or 0 < max_bytes < growth * found[-1]:
                break
        started = time.perf_counter()
        run(shapes, 1)
        seconds = time.perf_counter() - started
        used = memory.private_bytes() - before
        found.append(max(used, _MIN_RUN_BYTES, *found) if max_bytes else 0)
    return found
