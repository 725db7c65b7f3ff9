"""Tables as rows of numbers and back, as `columns` says: each column's values become float32.

Values are what numpy, pandas and Arrow give: numbers, text, booleans, None. None, NaN and an empty
text are missing values. A missing value becomes the column's `fill_value`. A boolean is the level
"true" or "false", and an integer in a categorical column is its digits. Bytes are text in UTF-8.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from latentd.columns import OTHER, Column

Rows = NDArray[np.float32]
"""float32, (rows, columns)."""

_QUOTED: Final = 40  # characters of a value in a message


def as_level(value: Any) -> str | None:
    """A value of a categorical column as the text of its level; None: it is missing."""
    if value is None or value is np.ma.masked:
        return None
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating):
        if np.isnan(value):
            return None
        if float(value).is_integer():  # pandas makes floats of integers where one is missing
            return str(int(value))
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return None if text in ("", "<NA>", "NaT") else text


def to_rows(
    columns: Sequence[Column], values: Mapping[str, Any], rows: int
) -> tuple[Rows, dict[int, str]]:
    """Columns of values, by name, as rows; and why rows that have 0 in place of a bad value cannot
    be used, by row, in words that follow "row 3". Names that are no column are ignored.

    Raises ValueError for a column that does not have one value for each row.
    """
    found = np.zeros((rows, len(columns)), np.float32)
    faults: dict[int, str] = {}
    for place, column in enumerate(columns):
        numbers, reasons = _to_numbers(column, values[column.name])
        if numbers.shape != (rows,):
            shape = f"{len(numbers)} values" if numbers.ndim == 1 else f"shape {numbers.shape}"
            raise ValueError(
                f"column {column.name!r} has {shape}; expected one for each of {rows} rows"
            )
        with np.errstate(over="ignore"):
            found[:, place] = numbers
        for row in np.flatnonzero(~np.isfinite(found[:, place])).tolist():
            what = reasons.get(row, "" if np.isnan(numbers[row]) else "holds an infinite number")
            what = what or "is missing, and this model was trained on rows without missing values"
            faults.setdefault(row, f"has a bad value: column {column.name!r} {what}")
            found[row, place] = 0
    return found, faults


def missing(columns: Sequence[Column], names: Iterable[str]) -> list[str]:
    """The columns that are not among these names."""
    given = set(names)
    return [column.name for column in columns if column.name not in given]


def to_values(columns: Sequence[Column], rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Rows as columns of values, by name: float32 of numeric columns, rounded if the data has
    integers; text of categorical ones."""
    found: dict[str, NDArray[Any]] = {}
    for place, column in enumerate(columns):
        numbers = np.asarray(rows)[:, place]
        if column.is_categorical:
            names = np.array([*column.levels, OTHER])
            found[column.name] = names[np.clip(numbers, 0, len(names) - 1).astype(np.int64)]
        else:
            rounded = np.rint(numbers) if column.is_integer else numbers
            found[column.name] = rounded.astype(np.float32)
    return found


def to_csv(values: Mapping[str, NDArray[Any]]) -> Iterator[list[str]]:
    """Columns of values as lines of text. A number has the fewest digits that give it again."""
    texts = [
        column.tolist() if column.dtype.kind == "U" else [_digits(number) for number in column]
        for column in values.values()
    ]
    return (list(line) for line in zip(*texts, strict=True))


def to_structured(columns: Sequence[Column], rows: NDArray[Any]) -> NDArray[Any]:
    """Rows as a structured array with a field for each column."""
    values = to_values(columns, rows)
    table = np.empty(len(rows), [(name, array.dtype) for name, array in values.items()])
    for name, array in values.items():
        table[name] = array
    return table


def standardized(columns: Sequence[Column], values: NDArray[Any]) -> NDArray[np.float64]:
    """Numbers of columns, on the last axis, in units of their standard deviation, so that one
    tolerance is right for all. Of params (rows, parameters, columns) these are the first."""
    mean = np.array([column.mean for column in columns])
    std = np.array([column.std for column in columns])
    found = values.astype(np.float64)
    part = found if found.ndim == 2 else found[:, 0]
    part -= mean
    part /= std
    return found


def rounding(columns: Sequence[Column]) -> NDArray[np.float64]:
    """How much float32 rounds the numbers of each column, in units of its standard deviation."""
    sizes = np.array([abs(column.mean) / column.std for column in columns])
    return sizes * 4 * float(np.finfo(np.float32).eps)


def _digits(number: np.float32) -> str:
    if 1e-4 <= abs(number) < 1e15 or number == 0:
        return np.format_float_positional(number, trim="-")
    return str(number)


def _to_numbers(column: Column, values: Any) -> tuple[NDArray[np.float64], dict[int, str]]:
    """The numbers of a column; NaN where there is none, with the reason if the value is not
    missing."""
    fill = np.nan if column.fill_value is None else column.fill_value
    if column.is_categorical:
        index = {level: number for number, level in enumerate(column.levels)}
        other = len(column.levels)
        levels = [as_level(value) for value in values]
        index |= {_plain(level): number for level, number in index.items()} | index
        numbers = [
            fill if level is None else index.get(level, index.get(_plain(level), other))
            for level in levels
        ]
        return np.array(numbers, np.float64), {}
    reasons: dict[int, str] = {}
    try:
        if np.asarray(values).dtype.kind in "mM":  # numpy would count nanoseconds
            raise TypeError
        if isinstance(values, np.ma.MaskedArray):
            plain = np.ma.filled(values.astype(np.float64), np.nan)
        else:
            plain = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        plain, reasons = _one_by_one(values)
    known = np.where(np.isnan(plain), fill, plain)
    for row in reasons:
        known[row] = np.nan
    return known, reasons


def _plain(level: str) -> str:
    """Other spellings of a boolean or of a number, as True, 03 and 0.50, as one."""
    if level.lower() in ("true", "false"):
        return level.lower()
    try:
        number = float(level)
    except ValueError:
        return level
    if number.is_integer():
        return str(int(number))
    return repr(number) if math.isfinite(number) else level


def _one_by_one(values: Iterable[Any]) -> tuple[NDArray[np.float64], dict[int, str]]:
    numbers, reasons = [], {}
    for row, value in enumerate(values):
        try:
            if isinstance(value, np.datetime64 | np.timedelta64) and not np.isnat(value):
                raise TypeError
            numbers.append(np.nan if as_level(value) is None else float(value))
        except (TypeError, ValueError):
            numbers.append(np.nan)
            reasons[row] = f"holds {str(value)[:_QUOTED]!r}, not a number"
    return np.array(numbers, np.float64), reasons
