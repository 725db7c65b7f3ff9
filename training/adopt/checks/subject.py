"""A candidate under examination: its graphs, and the rows to run them on."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from latentd.shapes import Sizes
from latentd.training.adopt import sounds
from latentd.training.adopt.candidate import Candidate
from latentd.training.adopt.checks.graphs import GraphFailed, Pair
from latentd.training.adopt.pictures import Pictures
from latentd.training.array import Array
from latentd.training.errors import AdmissionError

_CHEAP: Final = 1 << 14  # elements of x in one row
_NOISE_OF_UNBOUNDED: Final = 4.0  # standard deviations, where x has no range


class Subject:
    """A candidate, with its graphs loaded. Raises AdmissionError if one cannot be."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate, self.manifest = candidate, candidate.manifest
        try:
            self.graphs = Pair(candidate)
        except GraphFailed as error:
            raise AdmissionError(f"A graph {error}. Export it again.") from None
        self.sizes: list[Sizes] = [self.default]  # ascending; those that the graphs run at

    @property
    def default(self) -> dict[str, int]:
        """The default length of each free axis."""
        return {name: axis.default for name, axis in self.manifest.axes.items()}

    @property
    def has_real_rows(self) -> bool:
        """Whether the owner named rows, so that they are such as the model was trained on."""
        return len(self.candidate.images) > 0 or self.candidate.rows is not None

    @property
    def cheap(self) -> Sizes:
        """The default size, or a smaller one if many rows of the default would take long."""
        sizes, parts = self.default, 1
        while self.manifest.at(sizes).x.size > _CHEAP:
            parts *= 2
            axes = self.manifest.axes.items()
            less = {name: axis.nearest(axis.default // parts) for name, axis in axes}
            if less == sizes:
                break
            sizes = less
        return sizes

    def encode(self, x: Array) -> dict[str, Array]:
        """The encoder's outputs. Raises AdmissionError."""
        try:
            return self.graphs.encode(x)
        except GraphFailed as error:
            raise self._failed("encoder.onnx", x, error) from None

    def decode(self, z: Array) -> dict[str, Array]:
        """The decoder's outputs. Raises AdmissionError."""
        try:
            return self.graphs.decode(z)
        except GraphFailed as error:
            raise self._failed("decoder.onnx", z, error) from None

    def rows(self, sizes: Sizes, count: int) -> Array:
        """Rows of x: parts of pictures or sounds, or the owner's vectors, then as much noise."""
        x = self.manifest.at(sizes).x
        noise = self.noise(sizes, count)
        if x.kind == "audio":
            real = sounds.rows(x.shape, count - count // 2, self.manifest.x.sample_rate)
            if math.isfinite(x.range[1] - x.range[0]):
                real = from_unit((real + 1) / 2, x.range, x.dtype)
            else:
                real = (_NOISE_OF_UNBOUNDED * real).astype(x.dtype)
            return np.concatenate([real, noise[: count // 2]])
        if x.kind == "vector" and self.candidate.rows is not None:
            real = np.resize(self.candidate.rows, (count - count // 2, *x.shape))
            return np.concatenate([real, noise[: count // 2]])
        if x.kind != "image" or not math.isfinite(x.range[1] - x.range[0]):
            return noise
        real = from_unit(self.pictures(sizes, count - count // 2), x.range, x.dtype)
        return np.concatenate([real, noise[: count // 2]])

    def noise(self, sizes: Sizes, count: int) -> Array:
        """Rows of x whose values are independent and spread over its range."""
        x, random = self.manifest.at(sizes).x, np.random.default_rng(0)
        if not math.isfinite(x.range[1] - x.range[0]):
            values = _NOISE_OF_UNBOUNDED * random.standard_normal((count, *x.shape))
            return values.astype(x.dtype)
        return from_unit(random.random((count, *x.shape)), x.range, x.dtype)

    def pictures(self, sizes: Sizes, count: int) -> Array:
        """Parts of pictures at these sizes, from 0 to 1: (count, *x's shape)."""
        return self._pictures.rows(self.manifest.at(sizes).x.shape, count)

    @functools.cached_property
    def _pictures(self) -> Pictures:
        return Pictures(self.candidate.images)

    @staticmethod
    def _failed(name: str, rows: Array, error: GraphFailed) -> AdmissionError:
        return AdmissionError(
            f"{name} {error}, with a batch of {len(rows)} rows of shape {list(rows.shape[1:])}. "
            "Export it again, with the batch free."
        )


def from_unit(values: Array, x_range: tuple[float, float], dtype: str) -> Array:
    """Values from 0 to 1, moved to a range; bytes are rounded."""
    low, high = x_range
    moved: Array = low + values * (high - low)
    return (np.rint(moved) if dtype == "uint8" else moved).astype(dtype)


def format_sizes(sizes: Sizes) -> str:
    """{"h": 16, "w": 32} -> "h 16, w 32"."""
    return ", ".join(f"{name} {length}" for name, length in sizes.items()) or "its only size"


def format_short(sizes: Sizes) -> str:
    """{"h": 16, "w": 32} -> "16x32"."""
    return "x".join(map(str, sizes.values())) or "its only size"


def format_list(names: Sequence[str]) -> str:
    """["h", "w"] -> "h and w"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
