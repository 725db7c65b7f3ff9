"""Golden vectors: inputs in the bundle with the outputs that training computed for them.

A checksum says that the bytes are the published ones; only running them says that this machine's
runtime computes what the training did.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.bundle import GOLDEN, Bundle
from serving.errors import BundleError
from serving.runtime.chain import Chain
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


def check(bundle: Bundle, encoder: Graph, decoder: Graph, batch_rows: int = 0) -> float:
    """Run both graphs on the golden inputs; returns the largest absolute difference of floats.

    A graph that pads its batches does so once in each size up to `batch_rows`. Raises
    BundleError(golden) when the file cannot be used or a difference is beyond tolerance.
    """
    golden, allowed = _read(bundle.files[GOLDEN]), TOLERANCES[bundle.manifest.precision]
    encoded = {"mean": "mean", "log_var": "log_var"}
    decoded = {"x": "decoded_x", "params": "params"}
    return max(
        _run(encoder, golden, "x", encoded, batch_rows, allowed),
        _run(decoder, golden, "z", decoded, batch_rows, allowed),
    )


def check_chain(
    bundle: Bundle, chain: Chain, encoder: Graph, decoder: Graph, batch_rows: int
) -> None:
    """See that a chain of both graphs gives for the golden x what they give one after the other, in
    each size up to `batch_rows`. Raises BundleError(golden), and what the runtime raises."""
    golden, allowed = _read(bundle.files[GOLDEN]), TOLERANCES[bundle.manifest.precision]
    for rows in chain.sizes(batch_rows):
        x = _sized(golden["x"], rows)
        mean, log_var = encoder.run(x, ["mean", "log_var"])
        decoded_x, params = decoder.run(mean, ["x", "params"])
        expected = {"mean": mean, "log_var": log_var, "x": decoded_x, "params": params}
        for name, found in zip(expected, chain.run(x, list(expected)), strict=True):
            worst, within = _difference(found, expected[name], allowed)
            if not within:
                raise BundleError(
                    "golden", f"{name} differs by up to {worst:.3g} from what they give in turn."
                )


def _run(
    graph: Graph,
    golden: dict[str, Array],
    takes: str,
    gives: dict[str, str],
    batch_rows: int,
    allowed: Tolerance,
) -> float:
    """gives: output -> its name in the file."""
    worst = 0.0
    for rows in graph.sizes(batch_rows) or [len(golden[takes])]:
        try:
            found = graph.run(_sized(golden[takes], rows), list(gives))
        except Exception as error:
            raise BundleError("golden", f"A graph fails on its golden inputs: {error}") from error
        for name, array in zip(gives.values(), found, strict=True):
            worst = max(worst, _compare(name, array, _sized(golden[name], rows), allowed))
    return worst


def _sized(array: Array, rows: int) -> Array:
    """The first rows, or all of them again and again."""
    return np.resize(array, (rows, *array.shape[1:]))


def _read(data: bytes) -> dict[str, Array]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: file[name] for name in _ARRAYS}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError("golden", f"{GOLDEN} cannot be read: {error}") from None


def _compare(name: str, found: Array, expected: Array, allowed: Tolerance) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise BundleError(
            "golden",
            f"{name} came out as {found.dtype} {found.shape}, not {expected.dtype} "
            f"{expected.shape}.",
        )
    worst, within = _difference(found, expected, allowed)
    if not within:
        raise BundleError(
            "golden",
            f"{name} differs from the golden output by up to {worst:.3g}. "
            "The graph was damaged before it was published, or this runtime computes it wrongly.",
        )
    return 0.0 if found.dtype == np.uint8 else worst


def _difference(found: Array, expected: Array, allowed: Tolerance) -> tuple[float, bool]:
    """The largest absolute difference, and whether all are within what is allowed."""
    # The terms of a sum decide what rounding costs, also where they cancel to almost nothing.
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    most = (
        allowed.levels
        if found.dtype == np.uint8
        else allowed.atol * scale + allowed.rtol * np.abs(expected)
    )
    # NaN compares false: it is refused too.
    return float(difference.max(initial=0.0)), bool((difference <= most).all())
