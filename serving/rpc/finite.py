"""Responses hold finite numbers only: a request that makes the model compute others is rejected.

Bytes cannot hold NaN: where x is bytes, NaN in the decoder becomes some color. The output
from which scores are computed still shows it. It is checked if the decoder has one and NaN is
likely: the decoder computes in float16, or the latents are far from any data. A decoder of bytes
without a likelihood cannot be checked. NaN also becomes some level of a categorical column: the
params of rows with categorical columns are always checked.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from latentd.batching.runner import EngineError
from latentd.errors import InvalidArgument
from latentd.latents import Latents
from latentd.metrics import Metrics
from latentd.models.inference import ServedModel

_MAX: Final = float(np.finfo(np.float32).max)
_FAR: Final = 1000.0
"""A latent with a larger number is far from any data."""
_LOG_SECONDS: Final = 60.0

log = logging.getLogger(__name__)

REASON: Final = "makes the model compute NaN or infinity"


def bad_row(*arrays: NDArray[Any] | None) -> int | None:
    """The first row with a number that is not finite in one of these arrays; None: there is none.

    Responses are float32, so larger numbers count as infinite. Arrays of bytes are not checked.
    """
    for values in arrays:
        if values is not None and values.dtype.char != "B" and not _all_finite(values):
            return int(np.argmin(good_rows(*arrays)))
    return None


def _all_finite(values: NDArray[Any]) -> bool:
    # One pass of BLAS: NaN and infinity stay in the sum of squares. For the few numbers of a call
    # it takes half the time of isfinite().all(). A sum that overflows decides nothing.
    if values.dtype.char == "f" and math.isfinite(np.vdot(values, values)):
        return True
    return bool(_finite(values).all())


def good_rows(*arrays: NDArray[Any] | None) -> NDArray[np.bool_]:
    """Which rows are finite in all of these arrays, shape (rows,). One array must be given."""
    given = [values for values in arrays if values is not None]
    good = np.ones(len(given[0]), bool)
    for values in given:
        if values.dtype.char != "B":
            good &= _finite(values).reshape(len(values), -1).all(axis=1)
    return good


def _finite(values: NDArray[Any]) -> NDArray[np.bool_]:
    finite: NDArray[np.bool_] = (
        np.isfinite(values) if values.dtype.char == "f" else np.abs(values) <= _MAX
    )
    return finite


def needs_score_output(model: ServedModel, z: Latents) -> bool:
    """Whether the score output of these latents must be checked, as x hides NaN."""
    if model.checks_score_output:
        return True
    manifest = model.manifest
    if manifest.x.dtype != "uint8" or manifest.likelihood is None:
        return False
    # The first test takes one pass of BLAS and suffices for ordinary latents.
    return not float(np.vdot(z, z)) <= _FAR**2 and float(np.abs(z).max()) > _FAR


class NonfiniteRows:
    """Counts the rows for which a model computed NaN or infinity, and logs them once a minute."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._counter, self._clock, self._lock = metrics.nonfinite_rows, clock, threading.Lock()
        self._found: dict[str, int] = {}  # since the model's last line in the log
        self._logged_at: dict[str, float] = {}

    def add(
        self,
        model: ServedModel,
        *,
        encoder: Iterable[NDArray[Any] | None] = (),
        decoder: Iterable[NDArray[Any] | None] = (),
    ) -> None:
        """Count the rows that are not finite in these outputs: by the first graph that has one."""
        total, good = 0, None
        for graph, outputs in (("encoder", encoder), ("decoder", decoder)):
            given = [array for array in outputs if array is not None]
            if not given:
                continue
            found = good_rows(*given)
            bad = int((~found if good is None else good & ~found).sum())
            good = found if good is None else good & found
            total += bad
            if bad:
                self._counter.labels(model.manifest.model, graph).inc(bad)
        if total:
            self._log(model.manifest.model, total)

    def _log(self, model: str, rows: int) -> None:
        now = self._clock()
        with self._lock:
            rows += self._found.pop(model, 0)
            if now - self._logged_at.get(model, -math.inf) < _LOG_SECONDS:
                self._found[model] = rows
                return
            self._logged_at[model] = now
        log.warning("%s computed NaN or infinity for %d rows. They were rejected.", model, rows)


async def cause(
    row: int, field: str, alone: Awaitable[Iterable[NDArray[Any] | None]], unit: str = "row"
) -> InvalidArgument | EngineError:
    """The error for a row of a response that is not finite.

    field: of the request, which holds the row
    alone: the model's result for that row alone. If it is not finite either, the request is the
           cause, else the engine
    unit:  what `row` counts
    """
    if bad_row(*await alone) is None:
        return engine_error()
    return InvalidArgument(field, f"{unit} {row} {REASON}", "Send values like its training data")


def engine_error() -> EngineError:
    """The error for a response that is not finite although its request is valid."""
    return EngineError("The model computed NaN or infinity for rows that do not cause it.")
