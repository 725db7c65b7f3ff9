"""Golden vectors: inputs in the bundle with the outputs that training computed for them.

A checksum says that the bytes are the published ones; only running them says that this machine's
runtime computes what the training did. A file that could prove nothing (no rows, arrays of another
model's shapes) is refused, and nothing in it is unpacked before its size has been checked.
"""

from __future__ import annotations

import io
import itertools
import math
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentd.bundle import GOLDEN, LIKELIHOODS, Bundle, Manifest
from latentd.errors import BundleError
from latentd.runtime.engine import Graph


class Tolerance(NamedTuple):
    """What this machine may differ by from the golden outputs."""

    atol: float
    rtol: float
    levels: int  # of uint8 outputs: they are rounded


TOLERANCES: Final = {
    # Ten times the export's own: other CPUs and a GPU add up in another order.
    "float32": Tolerance(atol=1e-4, rtol=1e-3, levels=1),
    # Two or three times: the spacing of float16 is most of it, and is the same everywhere.
    "float16": Tolerance(atol=5e-2, rtol=2e-2, levels=4),
}

LEAST_ROWS: Final = 2
"""Rows of x, and of z: one row alone cannot show that rows of a batch are kept apart."""
MOST_BYTES: Final = 1 << 30
"""Of all arrays together, unpacked."""
MORE_SIZES_SECONDS: Final = 1.0
"""Time after which no further sizes of batch are tried than those that must be."""

Array = NDArray[Any]
_COMPARED_ROWS: Final = 256  # at a time: comparing takes several times the memory of its rows


@dataclass(frozen=True, slots=True)
class Golden:
    """What one graph has to give, by the names of its outputs, for some rows that it takes."""

    takes: Array
    gives: dict[str, Array]
    allowed: Tolerance

    def check(self, graph: Graph, batch_rows: int = 0) -> float:
        """Run a graph on these rows, again and again up to batches of `batch_rows`, the most that
        will serve; returns the largest absolute difference of floats.

        A graph that pads its batches is run in each of its sizes. One that takes them as they come
        is run on the rows as they are, on one row and on `batch_rows`; also on 2, 4, 8, ... rows
        for as long as all of it has taken less than MORE_SIZES_SECONDS. Raises BundleError(golden)
        when it fails or a difference is beyond tolerance.
        """
        worst = 0.0
        for rows in graph.sizes(batch_rows) or self._sizes(batch_rows):
            try:
                found = graph.run(_sized(self.takes, rows), list(self.gives))
            except Exception as error:
                said = f"A graph fails on its golden inputs: {error}"
                raise BundleError("golden", said) from error
            for (name, expected), array in zip(self.gives.items(), found, strict=True):
                worst = max(worst, _compare(name, array, expected, rows, self.allowed))
        return worst

    def _sizes(self, batch_rows: int) -> Iterator[int]:
        began = time.monotonic()
        first = dict.fromkeys((len(self.takes), 1, max(1, batch_rows)))
        yield from first
        for rows in itertools.takewhile(lambda n: n < batch_rows, (1 << n for n in range(1, 32))):
            if time.monotonic() - began > MORE_SIZES_SECONDS:
                return
            if rows not in first:
                yield rows


def read(bundle: Bundle) -> tuple[Golden, Golden]:
    """The encoder's and the decoder's. Raises BundleError(golden) when the file cannot be used."""
    m = bundle.manifest
    try:
        with zipfile.ZipFile(io.BytesIO(bundle.files[GOLDEN])) as file:
            arrays = _read(file, m)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError("golden", f"{GOLDEN} cannot be read: {error}") from None
    allowed = TOLERANCES[m.precision]
    encoded = {name: arrays[name] for name in ("mean", "log_var")}
    decoded = {"x": arrays["decoded_x"], "params": arrays["params"]}
    return Golden(arrays["x"], encoded, allowed), Golden(arrays["z"], decoded, allowed)


def _read(file: zipfile.ZipFile, m: Manifest) -> dict[str, Array]:
    """The arrays by name. None is unpacked before its dtype, shape and size are as they must be."""
    latent, params = (m.latent_size,), (LIKELIHOODS[m.likelihood], *m.x.shape)
    rows_of = {
        "x": (m.x.dtype, m.x.shape),
        **dict.fromkeys(("mean", "log_var", "z"), ("float32", latent)),
        "decoded_x": (m.x.dtype, m.x.shape),
        "params": ("float32", params),
    }
    rows, total = {}, 0
    for name, (dtype, shape) in rows_of.items():
        with file.open(f"{name}.npy") as member:
            found_shape, found_dtype = _header(member)
        if found_dtype != np.dtype(dtype) or found_shape[1:] != shape or not found_shape:
            raise BundleError(
                "golden",
                f"{GOLDEN}: {name} is {found_dtype} of shape {found_shape}, not {dtype} of shape "
                f"(rows, {', '.join(map(str, shape))}).",
            )
        rows[name] = found_shape[0]
        total += math.prod(found_shape) * found_dtype.itemsize
    for taken, given in (("x", ("mean", "log_var")), ("z", ("decoded_x", "params"))):
        if rows[taken] < LEAST_ROWS:
            raise BundleError(
                "golden",
                f"{GOLDEN}: {taken} has {rows[taken]} row(s), which prove nothing; at "
                f"least {LEAST_ROWS} are needed. Export the model again.",
            )
        for name in given:
            if rows[name] != rows[taken]:
                raise BundleError(
                    "golden",
                    f"{GOLDEN}: {name} has {rows[name]} rows, and {taken} has {rows[taken]}.",
                )
    if total > MOST_BYTES:
        raise BundleError(
            "golden",
            f"{GOLDEN} would unpack to {total >> 20} MiB; {MOST_BYTES >> 20} MiB are the most.",
        )
    arrays = {}
    for name in rows_of:
        with file.open(f"{name}.npy") as member:
            arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
    return arrays


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype, as the file says that they are. Raises ValueError."""
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(member)
    return shape, dtype


def _sized(array: Array, rows: int) -> Array:
    """The first rows, or all of them again and again."""
    return np.resize(array, (rows, *array.shape[1:]))


def _compare(name: str, found: Array, expected: Array, rows: int, allowed: Tolerance) -> float:
    """See that `found` is `expected`, again and again for so many rows; the largest difference."""
    shape = (rows, *expected.shape[1:])
    if found.shape != shape or found.dtype != expected.dtype:
        raise BundleError(
            "golden",
            f"{name} came out as {found.dtype} {found.shape}, not {expected.dtype} {shape}.",
        )
    # The terms of a sum decide what rounding costs, also where they cancel to almost nothing.
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    tiled = _sized(expected, -(-_COMPARED_ROWS // len(expected)) * len(expected))
    worst = 0.0
    for start in range(0, rows, len(tiled)):
        part = found[start : start + len(tiled)]
        wanted = tiled[: len(part)]
        difference = np.abs(part.astype(np.float64) - wanted.astype(np.float64))
        most = (
            allowed.levels
            if found.dtype == np.uint8
            else allowed.atol * scale + allowed.rtol * np.abs(wanted)
        )
        if not (difference <= most).all():  # NaN compares false: it is refused too
            raise BundleError(
                "golden",
                f"{name} differs from the golden output by up to {np.max(difference):.3g} in a "
                f"batch of {rows} row(s). The graph was damaged before it was published, or this "
                "runtime computes it wrongly.",
            )
        worst = max(worst, float(difference.max(initial=0.0)))
    return 0.0 if found.dtype == np.uint8 else worst
