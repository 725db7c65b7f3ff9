"""The columns of rows in units of their own: measured on the training rows, once for all parts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from latentd.columns import MAX_COLUMNS, Column
from latentd.training.array import Array
from latentd.training.config import Config
from latentd.training.errors import TrainingError

_ROUNDING: Final = 1e-6  # as in `data`: values this near 0..1 are in it
_MAX_RATIO: Final = 1e5
"""Of a mean to the standard deviation: above it, float32 loses the differences between rows."""
_MAX_JSON: Final = 3 << 18  # bytes of all columns in a manifest, which has other things to hold
_LARGEST: Final = 1e30  # of what a manifest holds
_SMALLEST: Final = 1e-30  # of a standard deviation: float32 can still divide by it
_NAMED: Final = 8  # columns in a message


def unnamed(config: Config, x: Array) -> tuple[Column, ...]:
    """Columns for vectors of an array that are not in 0..1, if they may be of any range; else ().

    They are called x0, x1 and so on.
    """
    scaled = x.dtype == np.uint8 or config.likelihood != "gaussian" or config.is_text
    if x.ndim != 2 or scaled or x.dtype.kind not in "iufb" or not x.size:
        return ()
    with np.errstate(invalid="ignore"):
        if x.min() >= -_ROUNDING and x.max() <= 1 + _ROUNDING:  # false where there is NaN
            return ()
    columns = tuple(Column(f"x{number}") for number in range(x.shape[1]))
    check_count(config.data, columns)
    return columns


def check_count(name: str, columns: Sequence[Column]) -> None:
    """Raise TrainingError if there are more columns than a bundle can name."""
    raw = [column.to_json() for column in columns]
    size = len(json.dumps({"x": {"columns": raw}}, indent=2))  # indented as a manifest is
    if len(columns) > MAX_COLUMNS or size > _MAX_JSON:
        sizes = [len(json.dumps(column)) for column in raw]
        largest = set(np.argsort(sizes)[-3:].tolist())
        chosen = [place in largest for place in range(len(columns))]
        raise TrainingError(
            f"{name} has {len(columns):,} columns, which take {size:,} bytes in a bundle; "
            f"{MAX_COLUMNS:,} columns of {_MAX_JSON:,} bytes are the limit. The most is of "
            f"{_names(columns, chosen)}. Leave some out with --ignore-columns, or scale the values "
            "of an array to 0..1."
        )


def as_float32(name: str, x: Array, columns: Sequence[Column]) -> Array:
    """The values as float32, NaN for missing ones. Raises TrainingError for infinite ones."""
    with np.errstate(over="ignore"):
        found = np.array(x, np.float32)
    infinite = np.isinf(found).sum(0)
    if infinite.any():
        raise TrainingError(
            f"{name}: values that are infinite, or too large for float32, in "
            f"{_counts(columns, infinite)}. Remove these rows, or use --ignore-columns."
        )
    return found


def check_precision(name: str, x: Array, columns: Sequence[Column]) -> None:
    """Raise TrainingError if float32 cannot tell the values of a numeric column apart."""
    known = np.isfinite(x)
    counts = np.maximum(known.sum(0), 1)
    mean = np.where(known, x, 0).sum(0, np.float64) / counts
    std = np.sqrt(np.square(np.where(known, x - mean, 0)).sum(0) / counts)
    varies = std > 1e-12 * np.abs(mean)  # more than float64 rounds
    numeric = np.array([not column.is_categorical for column in columns])
    lost = numeric & varies & (np.abs(mean) > _MAX_RATIO * std)
    if lost.any():
        raise TrainingError(
            f"{name}: float32 loses the differences between the values of {_names(columns, lost)}, "
            "which are small beside the values. Subtract an offset (of a time its start), or leave "
            "it out with --ignore-columns."
        )


def measured(
    columns: Sequence[Column], train: Tensor, config: Config, notes: list[str]
) -> tuple[Column, ...]:
    """The columns with the mean and the standard deviation of the training rows, and with what
    stands for missing values. Adds sentences to `notes`. Raises TrainingError."""
    x = train.double().numpy()
    known = np.isfinite(x)
    counts = known.sum(0)
    numeric = np.array([not column.is_categorical for column in columns])
    if (empty := numeric & (counts == 0)).any():
        raise TrainingError(
            f"{config.data}: no training row has a value of {_names(columns, empty)}. Leave it out "
            "with --ignore-columns."
        )
    fills = config.missing == "mean"
    total = np.where(known, x, 0).sum(0)
    mean = np.where(numeric, total / np.maximum(counts, 1), 0)
    deviation = np.where(known, x - mean, 0)
    std = np.sqrt(np.square(deviation).sum(0) / np.maximum(counts, 1))
    std = np.where(numeric, std, 1)
    lowest, highest = (f(np.where(known, x, mean), axis=0) for f in (np.min, np.max))
    constant = numeric & (lowest == highest)
    large = (np.abs(mean) > _LARGEST) | (std > _LARGEST)
    if (wrong := numeric & (large | ~constant & (std < _SMALLEST))).any():
        raise TrainingError(
            f"{config.data}: the mean or the standard deviation of {_names(columns, wrong)} is out "
            f"of the range of a model: {_LARGEST:g} is the limit, and {_SMALLEST:g} the least "
            "standard deviation. Use another unit, or leave it out with --ignore-columns."
        )
    if constant.any():
        notes.append(
            f"{config.data}: {_names(columns, constant)} has one value in all training rows. It is "
            "kept, so that another value is unusual; --ignore-columns leaves it out."
        )
    integers = np.asarray(np.where(known, x % 1 == 0, True).all(0))
    if (rounded := numeric & integers & ~constant).any():
        notes.append(
            f"{config.data}: {_names(columns, rounded)} has integers only, so tables that are "
            "written later have it rounded to integers."
        )
    # A constant has no scale of its own: a change by its own size counts as one deviation.
    std = np.where(constant, np.where(np.abs(mean) < _SMALLEST, 1, np.abs(mean)), std)
    mean, std = (values.astype(np.float32).astype(np.float64) for values in (mean, std))
    found = tuple(
        dataclasses.replace(column, fill_value=float(len(column.levels)) if fills else None)
        if column.is_categorical
        else dataclasses.replace(
            column, mean=m, std=s, fill_value=m if fills else None, is_integer=w
        )
        for column, m, s, w in zip(
            columns, mean.tolist(), std.tolist(), integers.tolist(), strict=True
        )
    )
    check_count(config.data, found)
    return found


def check_missing(
    name: str, columns: Sequence[Column], x: Array, config: Config, notes: list[str]
) -> None:
    """Say which columns lack values, and how many. Raises TrainingError unless --missing fills."""
    lacking = np.isnan(x).sum(0)
    if not lacking.any():
        return
    what = f"{name}: missing values in {_counts(columns, lacking)} of {len(x):,} rows"
    if config.missing == "fail":
        raise TrainingError(
            f"{what}. Use --missing mean, remove these rows, or leave columns out with "
            "--ignore-columns."
        )
    of_categorical = any(c.is_categorical and n for c, n in zip(columns, lacking, strict=True))
    also = "; of a categorical column, by the level of other values" * of_categorical
    notes.append(f"{what}. They are replaced by the column's mean in the training rows{also}.")


def filled(columns: Sequence[Column], x: Tensor) -> Tensor:
    """Rows with each missing value replaced."""
    values = torch.tensor([0.0 if c.fill_value is None else c.fill_value for c in columns])
    return torch.where(x.isnan(), values, x)


def aligned(name: str, known: Sequence[Column], found: Sequence[Column], x: Array) -> Array:
    """Rows of the columns `found` as rows of a model's columns `known`. Raises TrainingError."""
    places = {column.name: place for place, column in enumerate(found)}
    if lacking := [column.name for column in known if column.name not in places]:
        raise TrainingError(f"{name} has no column {lacking[0]!r}, which the model needs.")
    rows = np.empty((len(x), len(known)), x.dtype)
    for place, column in enumerate(known):
        given = found[places[column.name]]
        values = x[:, places[column.name]]
        if given.is_categorical != column.is_categorical:
            kinds = "numeric", "categorical"
            raise TrainingError(
                f"{name}: column {column.name!r} is {kinds[given.is_categorical]}; the model was "
                f"trained on a {kinds[column.is_categorical]} one."
            )
        if column.is_categorical:
            index = {level: number for number, level in enumerate(column.levels)}
            numbers = [index.get(level, len(column.levels)) for level in given.levels]
            table = np.array([*numbers, len(column.levels)], x.dtype)
            missing = np.isnan(values)
            values = np.where(missing, np.nan, table[np.where(missing, 0, values).astype(np.int64)])
        rows[:, place] = values
    return rows


def _names(columns: Sequence[Column], chosen: Iterable[bool]) -> str:
    names = [column.name for column, is_chosen in zip(columns, chosen, strict=True) if is_chosen]
    more = f" and {len(names) - _NAMED} more columns" if len(names) > _NAMED else ""
    return f"column {', '.join(map(repr, names[:_NAMED]))}{more}"


def _counts(columns: Sequence[Column], counts: Iterable[int]) -> str:
    found = [f"{c.name!r} ({n:,})" for c, n in zip(columns, counts, strict=True) if n]
    more = f" and {len(found) - _NAMED} more columns" if len(found) > _NAMED else ""
    return f"column {', '.join(found[:_NAMED])}{more}"
