"""Responses hold finite numbers only: a request that makes the model compute others is rejected."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from latentd.batching.runner import EngineError
from latentd.errors import InvalidArgument

_MAX: Final = float(np.finfo(np.float32).max)

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
