"""No answer holds NaN or infinity: who sent what makes a model compute them is told so."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from latentd.batching.runner import EngineError
from latentd.errors import InvalidArgument

_MOST: Final = float(np.finfo(np.float32).max)

REASON: Final = "makes the model compute NaN or infinity"


def bad_row(*arrays: NDArray[Any] | None) -> int | None:
    """The first row that is not finite numbers in all of these arrays; None: all rows are.

    Numbers too large for float32, as which they are sent, are not; bytes are not looked at.
    """
    for values in arrays:
        if values is not None and values.dtype.char != "B" and not _finite(values).all():
            return int(np.argmin(good_rows(*arrays)))
    return None


def good_rows(*arrays: NDArray[Any] | None) -> NDArray[np.bool_]:
    """Which rows are finite numbers in all of these arrays, shape (rows,). One must be given."""
    given = [values for values in arrays if values is not None]
    good = np.ones(len(given[0]), bool)
    for values in given:
        if values.dtype.char != "B":
            good &= _finite(values).reshape(len(values), -1).all(axis=1)
    return good


def _finite(values: NDArray[Any]) -> NDArray[np.bool_]:
    finite: NDArray[np.bool_] = (
        np.isfinite(values) if values.dtype.char == "f" else np.abs(values) <= _MOST
    )
    return finite


async def cause(
    row: int, field: str, alone: Awaitable[Iterable[NDArray[Any] | None]], unit: str = "row"
) -> InvalidArgument | EngineError:
    """Why a row of an answer is not finite.

    field: of the request, which holds the row
    alone: what the model gives for that row without others: if it is not finite either, the request
           is the cause, else the engine
    unit:  what is counted by `row`
    """
    if bad_row(*await alone) is None:
        return not_from_the_request()
    return InvalidArgument(field, f"{unit} {row} {REASON}", "Send values like its training data")


def not_from_the_request() -> EngineError:
    """The error for an answer that is not finite through no fault of the request."""
    return EngineError("The model gave NaN or infinity for rows that do not cause it.")
