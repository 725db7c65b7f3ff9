"""Golden vectors: inputs in the bundle with the outputs that training computed for them.

A checksum says that the bytes are the published ones; only running them says that this machine's
runtime computes what the training did.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.bundle import GOLDEN, Bundle
from serving.errors import BundleError
from serving.runtime.engine import Graph


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

Array = NDArray[Any]
_ARRAYS: Final = ("x", "mean", "log_var", "z", "decoded_x", "params")


@dataclass(frozen=True, slots=True)
class Golden:
    """What one graph has to give, by the names of its outputs, for some rows that it takes."""

    takes: Array
    gives: dict[str, Array]
    allowed: Tolerance

    def check(self, graph: Graph, batch_rows: int = 0) -> float:
        """Run a graph on these rows; returns the largest absolute difference of floats.

        One that pads its batches is run once in each size up to `batch_rows`. Raises
        BundleError(golden) when it fails or a difference is beyond tolerance.
        """
        worst = 0.0
        for rows in graph.sizes(batch_rows) or [len(self.takes)]:
            try:
                found = graph.run(_sized(self.takes, rows), list(self.gives))
            except Exception as error:
                said = f"A graph fails on its golden inputs: {error}"
                raise BundleError("golden", said) from error
            for (name, expected), array in zip(self.gives.items(), found, strict=True):
                worst = max(worst, _compare(name, array, _sized(expected, rows), self.allowed))
        return worst


def read(bundle: Bundle) -> tuple[Golden, Golden]:
    """The encoder's and the decoder's. Raises BundleError(golden) when the file cannot be used."""
    try:
        with np.load(io.BytesIO(bundle.files[GOLDEN]), allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError("golden", f"{GOLDEN} cannot be read: {error}") from None
    allowed = TOLERANCES[bundle.manifest.precision]
    encoded = {name: arrays[name] for name in ("mean", "log_var")}
    decoded = {"x": arrays["decoded_x"], "params": arrays["params"]}
    return Golden(arrays["x"], encoded, allowed), Golden(arrays["z"], decoded, allowed)


def _sized(array: Array, rows: int) -> Array:
    """The first rows, or all of them again and again."""
    return np.resize(array, (rows, *array.shape[1:]))


def _compare(name: str, found: Array, expected: Array, allowed: Tolerance) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise BundleError(
            "golden",
            f"{name} came out as {found.dtype} {found.shape}, not {expected.dtype} "
            f"{expected.shape}.",
        )
    # The terms of a sum decide what rounding costs, also where they cancel to almost nothing.
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    most = (
        allowed.levels
        if found.dtype == np.uint8
        else allowed.atol * scale + allowed.rtol * np.abs(expected)
    )
    if not (difference <= most).all():  # NaN compares false: it is refused too
        raise BundleError(
            "golden",
            f"{name} differs from the golden output by up to {np.max(difference):.3g}. "
            "The graph was damaged before it was published, or this runtime computes it wrongly.",
        )
    return 0.0 if found.dtype == np.uint8 else float(difference.max(initial=0.0))
