"""No answer holds NaN or infinity: who sent what makes a model compute them is told so."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from serving.batching.runner import EngineError
from serving.errors import InvalidInput

_MOST: Final = float(np.finfo(np.float32).max)

REASON: Final = "makes the model compute NaN or infinity"


def good_rows(*arrays: NDArray[Any] | None) -> NDArray[np.bool_] | None:
    """Which rows are finite numbers in all of these arrays, shape (rows,); None: all of them are.

    Numbers too large for float32, as which they are sent, are not; bytes are not looked at.
    """
    good: NDArray[np.bool_] | None = None
    for values in arrays:
        if values is None or values.dtype.char == "B":
            continue
        finite = np.isfinite(values) if values.dtype.char == "f" else np.abs(values) <= _MOST
        if not finite.all():
            rows = finite.reshape(len(values), -1).all(axis=1)
            good = rows if good is None else good & rows
    return good


def bad_row(*arrays: NDArray[Any] | None) -> int | None:
    """The first row that is not finite in one of these arrays; None: all are."""
    good = good_rows(*arrays)
    return None if good is None else int(np.argmin(good))


async def cause(
    row: int, field: str, alone: Awaitable[Iterable[NDArray[Any] | None]], unit: str = "row"
) -> InvalidInput | EngineError:
    """Why a row of an answer is not finite.

    field: of the request, which holds the row
    alone: what the model gives for that row without others: if it is not finite either, the request
           is the cause, else the engine
    unit:  what is counted by `row`
    """
    if bad_row(*await alone) is None:
        return not_from_the_request()
    return InvalidInput(field, f"{unit} {row} {REASON}", "Send values as it was trained on")


def not_from_the_request() -> EngineError:
    """The error for an answer that is not finite through no fault of the request."""
    return EngineError("The model gave NaN or infinity for rows that do not cause it.")
