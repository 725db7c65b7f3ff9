"""Golden vectors: inputs in the bundle, with the outputs that training computed for them.

A checksum proves that the bytes are the published ones. Only a run proves that this machine's
runtime computes what training computed. A file that cannot prove anything (no rows, arrays of
another model's shapes) is rejected, and no array is unpacked before its size has been checked.
"""

from __future__ import annotations

import io
import itertools
import math
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentd import tables
from latentd.bundle import GOLDEN, Bundle, Manifest
from latentd.columns import Column
from latentd.errors import BundleError
from latentd.posterior import Nats
from latentd.runtime.engine import Graph
from latentd.runtime.likelihood import LikelihoodGraph
from latentd.shapes import SizeError


class Tolerance(NamedTuple):
    """How much this machine's outputs may differ from the golden ones."""

    atol: float
    rtol: float
    levels: int  # for uint8 outputs: they are rounded


TOLERANCES: Final = {
    # Ten times the export's own: other CPUs and GPUs add in another order.
    "float32": Tolerance(atol=1e-4, rtol=1e-3, levels=1),
    # Two or three times the export's own: mostly the spacing of float16, the same everywhere.
    "float16": Tolerance(atol=5e-2, rtol=2e-2, levels=4),
}

_LIKELIHOOD_TOLERANCE: Final = Tolerance(atol=1e-5, rtol=1e-5, levels=0)
"""Of sums over the elements of x, from the same params: only their rounding differs."""
_LOG_LIKELIHOOD: Final = "log_likelihood"
_CONTRIBUTIONS: Final = "the sum of contributions"

MIN_ROWS: Final = 2
"""Rows of x, and of z: a single row cannot show that the rows of a batch are kept apart."""
MAX_BYTES: Final = 1 << 30
"""Limit for all arrays together, unpacked."""
MORE_SIZES_SECONDS: Final = 1.0
"""After this time only the required batch sizes are still tried."""

_COMPARED_ROWS: Final = 256  # at a time: a comparison takes several times the memory of its rows


@dataclass(frozen=True, slots=True)
class Golden:
    """Input rows of one graph at one size, and the expected outputs by name."""

    input: NDArray[Any]
    outputs: dict[str, NDArray[Any]]
    tolerance: Tolerance
    elements: int  # numbers in one row of x at this size
    columns: tuple[Column, ...] = ()  # of the outputs, which are compared in units of their std

    def check(self, graph: Graph, batch_rows: int = 0) -> float:
        """Run a graph on these rows, repeated up to `batch_rows`, the largest batch that will
        serve. Returns the largest absolute difference of floats.

        A graph that pads its batches runs in each of its sizes. Any other graph runs on the rows
        themselves, on one row and on `batch_rows`; then on 2, 4, 8, ... rows until
        MORE_SIZES_SECONDS have passed. Raises BundleError(golden) when a run fails or a difference
        exceeds the tolerance.
        """
        max_error = 0.0
        for rows in graph.batch_sizes(batch_rows) or self._sizes(batch_rows):
            try:
                arrays = graph.run(_tile(self.input, rows), list(self.outputs))
            except Exception as error:
                message = f"A graph fails on its golden inputs: {error}"
                raise BundleError("golden", message) from error
            for (name, expected), array in zip(self.outputs.items(), arrays, strict=True):
                difference = _compare(name, array, expected, rows, self.tolerance, self.columns)
                max_error = max(max_error, difference)
        return max_error

    def _sizes(self, batch_rows: int) -> Iterator[int]:
        start = time.monotonic()
        required = dict.fromkeys((len(self.input), 1, max(1, batch_rows)))
        yield from required
        for rows in itertools.takewhile(lambda n: n < batch_rows, (1 << n for n in range(1, 32))):
            if time.monotonic() - start > MORE_SIZES_SECONDS:
                return
            if rows not in required:
                yield rows


@dataclass(frozen=True, slots=True)
class GoldenLikelihood:
    """Rows of x at one size with their params, and the expected log p(x | z)."""

    x: NDArray[Any]
    params: NDArray[np.float32]
    log_likelihood: Nats

    def check(self, likelihood: LikelihoodGraph) -> None:
        """As Golden.check; one row, these rows, and more rows than the graph runs at once."""
        for rows in dict.fromkeys((1, len(self.params), likelihood.rows_of_run(self.x) + 1)):
            x, params = _tile(self.x, rows), _tile(self.params, rows)
            try:
                found = likelihood.log_prob(x, params)
                terms = (
                    likelihood.contributions(x, params) if likelihood.has_contributions else None
                )
            except Exception as error:
                message = f"The likelihood's graph fails on its golden inputs: {error}"
                raise BundleError("golden", message) from error
            _compare(_LOG_LIKELIHOOD, found, self.log_likelihood, rows, _LIKELIHOOD_TOLERANCE)
            if terms is not None:
                sums = -terms.reshape(rows, -1).sum(axis=1, dtype=np.float64)
                _compare(_CONTRIBUTIONS, sums, self.log_likelihood, rows, _LIKELIHOOD_TOLERANCE)


class GoldenVectors(NamedTuple):
    """The golden vectors of each graph, one at each size that the file has."""

    encoder: list[Golden]
    decoder: list[Golden]
    likelihood: list[GoldenLikelihood]  # none: without a likelihood, and in format 1


def read(bundle: Bundle) -> GoldenVectors:
    """The golden vectors: first of the default size, then, in arrays with the prefixes "1.", "2.",
    ..., of others. Raises BundleError(golden)."""
    m = bundle.manifest
    try:
        with zipfile.ZipFile(io.BytesIO(bundle.files[GOLDEN])) as file:
            sets = _read(file, m)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError("golden", f"{GOLDEN} cannot be read: {error}") from None
    if m.axes and len(sets) < 2:
        raise BundleError(
            "golden",
            f"{GOLDEN} has vectors at one size only, and the model has free axes. Export the model "
            "again.",
        )
    is_text = m.x.is_text
    tolerance, vectors = TOLERANCES[m.precision], GoldenVectors([], [], [])
    for arrays in sets:
        elements = math.prod(arrays["x"].shape[1:])
        encoded = {name: arrays[name] for name in m.encoder_outputs}
        decoded, exact = {"x": arrays["decoded_x"]}, tolerance
        if is_text:
            decoded[_LOG_LIKELIHOOD] = arrays[_LOG_LIKELIHOOD]
            exact = tolerance._replace(levels=0)  # another byte is another character
        elif m.likelihood:
            decoded["params"] = arrays["params"]
        columns = m.x.columns
        vectors.encoder.append(Golden(arrays["x"], encoded, tolerance, elements))
        vectors.decoder.append(Golden(arrays["z"], decoded, exact, elements, columns))
        if _LOG_LIKELIHOOD in arrays and not is_text:
            x, params = _tile(arrays["x"], len(arrays["params"])), arrays["params"]
            vectors.likelihood.append(GoldenLikelihood(x, params, arrays[_LOG_LIKELIHOOD]))
    return vectors


def _read(file: zipfile.ZipFile, m: Manifest) -> list[dict[str, NDArray[Any]]]:
    """The arrays of each size by name. None is unpacked before its dtype, shape and size have been
    checked."""
    prefixes = [""]
    while f"{len(prefixes)}.x.npy" in file.namelist():
        prefixes.append(f"{len(prefixes)}.")
    total = sum(_check_headers(file, m, prefix) for prefix in prefixes)
    if total > MAX_BYTES:
        raise BundleError(
            "golden",
            f"{GOLDEN} would unpack to {total >> 20} MiB; the limit is {MAX_BYTES >> 20} MiB.",
        )
    sets = []
    for prefix in prefixes:
        arrays = {}
        for name in _names(m):
            with file.open(f"{prefix}{name}.npy") as member:
                arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
        sets.append(arrays)
    return sets


def _names(m: Manifest) -> tuple[str, ...]:
    return ("x", *m.encoder_outputs, "z", *_decoded(m))


def _decoded(m: Manifest) -> tuple[str, ...]:
    """The arrays with as many rows as z."""
    if not m.likelihood:
        return ("decoded_x",)
    if m.x.is_text:
        return ("decoded_x", _LOG_LIKELIHOOD)
    return ("decoded_x", "params", *((_LOG_LIKELIHOOD,) if m.format > 1 else ()))


def _check_headers(file: zipfile.ZipFile, m: Manifest, prefix: str) -> int:
    """Check the arrays of one size by their headers; returns their bytes. Raises BundleError."""
    found = {}
    for name in _names(m):
        with file.open(f"{prefix}{name}.npy") as member:
            found[name] = _header(member)
    shapes = m.default
    if prefix:
        try:
            shapes = m.shapes_of_x(found["x"][0][1:])
        except SizeError as error:
            raise BundleError("golden", f"{GOLDEN}: {prefix}x has a wrong size: {error}") from None
    expected_rows: dict[str, tuple[str, tuple[int, ...]]] = {
        "x": (shapes.x.dtype, shapes.x.shape),
        **dict.fromkeys(m.encoder_outputs, ("float32", shapes.z)),
        "z": ("float32", m.decoder_row(shapes)),
        "decoded_x": (shapes.x.dtype, shapes.x.shape),
        "params": ("float32", shapes.params or ()),
        _LOG_LIKELIHOOD: ("float32", (1,)) if m.x.is_text else ("float64", ()),
    }
    rows, total = {}, 0
    for name, (found_shape, found_dtype) in found.items():
        dtype, shape = expected_rows[name]
        if found_dtype != np.dtype(dtype) or found_shape[1:] != shape or not found_shape:
            raise BundleError(
                "golden",
                f"{GOLDEN}: {prefix}{name} has dtype {found_dtype} and shape {found_shape}, "
                f"expected {dtype} and ({', '.join(map(str, ('rows', *shape)))}).",
            )
        rows[name] = found_shape[0]
        total += math.prod(found_shape) * found_dtype.itemsize
    for input_, outputs in (("x", m.encoder_outputs), ("z", _decoded(m))):
        if rows[input_] < MIN_ROWS:
            raise BundleError(
                "golden",
                f"{GOLDEN}: {prefix}{input_} has {rows[input_]} row(s), expected at least "
                f"{MIN_ROWS}. Export the model again.",
            )
        for name in outputs:
            if rows[name] != rows[input_]:
                raise BundleError(
                    "golden",
                    f"{GOLDEN}: {prefix}{name} has {rows[name]} rows, but {input_} has "
                    f"{rows[input_]}.",
                )
    return total


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype by the file's header. Raises ValueError."""
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(member)
    return shape, dtype


def _tile(array: NDArray[Any], rows: int) -> NDArray[Any]:
    """The first `rows` rows; if there are fewer, all of them repeatedly."""
    return np.resize(array, (rows, *array.shape[1:]))


def _compare(
    name: str,
    found: NDArray[Any],
    expected: NDArray[Any],
    rows: int,
    tolerance: Tolerance,
    columns: Sequence[Column] = (),
) -> float:
    """Check that `found` is `expected`, repeated up to `rows`; returns the largest difference.

    columns: of the last axis; numbers are then compared in units of each column's std
    """
    shape = (rows, *expected.shape[1:])
    if found.shape != shape or found.dtype != expected.dtype:
        raise BundleError(
            "golden",
            f"Output {name} has dtype {found.dtype} and shape {found.shape}, expected "
            f"{expected.dtype} and {shape}.",
        )
    slack: NDArray[Any] | float = 0.0
    if columns:
        slack = tables.rounding(columns)
        found, expected = (tables.standardized(columns, array) for array in (found, expected))
    # The size of a sum's terms decides the rounding error, even if they almost cancel.
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    tiled = _tile(expected, -(-_COMPARED_ROWS // len(expected)) * len(expected))
    max_error = 0.0
    for start in range(0, rows, len(tiled)):
        part = found[start : start + len(tiled)]
        reference = tiled[: len(part)]
        difference = np.abs(part.astype(np.float64) - reference.astype(np.float64))
        limit = (
            tolerance.levels
            if found.dtype == np.uint8
            else tolerance.atol * scale + tolerance.rtol * np.abs(reference) + slack
        )
        if not (difference <= limit).all():  # NaN compares false, so it fails too
            raise BundleError(
                "golden",
                f"{name} differs from the golden output by up to {np.max(difference):.3g} in a "
                f"batch of {rows} row(s). Either the graph was damaged before it was published, "
                "or this runtime computes it incorrectly.",
            )
        max_error = max(max_error, float(difference.max(initial=0.0)))
    return 0.0 if found.dtype == np.uint8 else max_error
