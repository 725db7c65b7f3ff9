"""Loads the data set: its rows are checked once and split by seed."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from latentd.columns import Column
from latentd.training import likelihoods, table_columns
from latentd.training.array import Array
from latentd.training.config import Config
from latentd.training.dataset import Dataset, Rows
from latentd.training.distributed import notice
from latentd.training.errors import TrainingError
from latentd.training.readers.arrays import Arrays
from latentd.training.readers.sources import permutation, read

ROUNDING: Final = 1e-6
"""A float this far outside the range is moved to the bound, because scalers round."""

_DARK: Final = 25  # if no byte is larger, the range is probably not 0..255


def load(config: Config, run: Path | None = None, known: tuple[Column, ...] = ()) -> Dataset:
    """Read, check and split `config.data`. The same config always gives the same split.

    run: the run's folder, which keeps pictures decoded; None decodes them into memory
    known: the columns of a model that shall take the rows; (): they are measured here
    Prints notes about the data to standard error: skipped files, values outside the range.
    Raises TrainingError, which says what is wrong, in which row, and what to do.
    """
    source, columns = _resolve_columns(config, read(config, run), known)
    notes = list(source.notes)
    x, y = _checked(config.data, source.x, source.y, columns=columns)
    if not (source.text or columns):
        notes += _check_dark_bytes(config.data, x)
    if config.likelihood == "discretized-logistic" and x.dtype != torch.uint8:
        raise TrainingError(
            f"--likelihood discretized-logistic needs uint8 rows and {config.data} has "
            f"{_format_rows(x)}. Save its values as uint8, or use --likelihood gaussian."
        )
    if not source.permuted:
        order = torch.from_numpy(permutation(config, len(x)))
        x, y = x[order], None if y is None else y[order]
    own_test = _own_test_rows(config, source, x, columns, notes)
    train, validation, test = _split(config, x, y, own_test)
    if columns:
        table_columns.check_missing(config.data, columns, x.numpy(), config, notes)
        if own_test:
            name = f"{config.data} (test rows)"
            table_columns.check_missing(name, columns, own_test.x.numpy(), config, notes)
        if not known:
            columns = table_columns.measured(columns, train.x, config, notes)
        train, validation, test = (
            Rows(table_columns.filled(columns, part.x), part.y)
            for part in (train, validation, test)
        )
    if config.binarization == "fixed":
        draws = torch.Generator().manual_seed(config.binarization_seed)
        train, validation, test = (_binarize_fixed(p, draws) for p in (train, validation, test))
    digest = hashlib.sha256()
    for part in (train, validation, test):
        digest.update(part.x.numpy().data)  # no copy: it may be larger than the memory
    for note in notes:
        notice(note)
    return Dataset(
        train,
        validation,
        test,
        own_test is not None,
        digest.hexdigest(),
        source.classes,
        source.text,
        columns,
    )


def _resolve_columns(
    config: Config, source: Arrays, known: tuple[Column, ...]
) -> tuple[Arrays, tuple[Column, ...]]:
    """The source with its columns in the order of `known`, and the columns: () if its rows have no
    units of their own."""
    table_columns.check_count(config.data, source.columns)
    if known and source.columns:
        aligned = table_columns.aligned(config.data, known, source.columns, source.x)
        source = source._replace(x=aligned)
    if known and source.x.ndim == 2 and not source.text:
        if source.x.shape[1] != len(known):
            raise TrainingError(
                f"{config.data} has {source.x.shape[1]} columns; this model takes {len(known)}."
            )
        return source, known
    columns = source.columns or table_columns.unnamed(config, source.x)
    if columns and not source.columns:
        low, high = np.nanmin(source.x), np.nanmax(source.x)
        note = (
            f"{config.data}: values lie in {low:.6g} to {high:.6g}, not in 0 to 1: they stay as "
            "they are, and the model standardizes each column."
        )
        source = source._replace(notes=(*source.notes, note))
    if columns:
        table_columns.check_precision(config.data, source.x, columns)
    return source, columns


def _own_test_rows(
    config: Config, source: Arrays, x: Tensor, columns: Sequence[Column], notes: list[str]
) -> Rows | None:
    """The source's own test rows, checked like its other rows x; None: it has none."""
    if source.x_test is None:
        return None
    # The strongest anomalies lie outside the training range.
    beyond = None if likelihoods.of(config).bounded else notes
    name = f"{config.data} (test rows)"
    test = Rows(*_checked(name, source.x_test, source.y_test, beyond, columns))
    if test.x.shape[1:] != x.shape[1:] or test.x.dtype != x.dtype:
        raise TrainingError(
            f"{config.data}: test rows are {_format_rows(test.x)} and training rows "
            f"{_format_rows(x)}; they must match."
        )
    return test


def _split(
    config: Config, x: Tensor, y: Tensor | None, own_test: Rows | None
) -> tuple[Rows, Rows, Rows]:
    """The training, validation and test rows among permuted rows. own_test: then none of these are
    test rows."""
    held_out = 0 if own_test else round(config.test_fraction * len(x))
    validating = round(config.val_fraction * (len(x) - held_out))
    test = own_test or _part(x, y, 0, held_out)
    validation = _part(x, y, held_out, held_out + validating)
    train = _part(x, y, held_out + validating, len(x))
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        if not len(part):
            raise TrainingError(
                f"{config.data} has {len(x)} rows, too few to split: none is left for {name}. "
                "Add rows, or change --val-fraction or --test-fraction."
            )
    return train, validation, test


def _binarize_fixed(rows: Rows, draws: torch.Generator) -> Rows:
    """Draw each value as 0 or the maximum. The value decides the chance of the maximum."""
    highest = 255 if rows.x.dtype == torch.uint8 else 1
    white = torch.rand(rows.x.shape, generator=draws) < rows.x / highest
    return Rows(white.to(rows.x.dtype) * highest, rows.y)


def _part(x: Tensor, y: Tensor | None, start: int, stop: int) -> Rows:
    return Rows(x[start:stop], None if y is None else y[start:stop])


def _checked(
    name: str,
    x: Array,
    y: Array | None,
    beyond: list[str] | None = None,
    columns: Sequence[Column] = (),
) -> tuple[Tensor, Tensor | None]:
    """Rows and labels as tensors. Every source passes these checks.

    beyond: a list that receives a sentence about finite floats outside [0, 1]. None rejects them.
    columns: of rows in units of their own; NaN there is a missing value
    """
    if columns:
        x = table_columns.as_float32(name, x, columns)
    elif x.dtype.kind not in "uf" or (x.dtype.kind == "u" and x.itemsize > 1):
        raise TrainingError(
            f"{name}: values are {x.dtype}; make them uint8 in 0..255 or float32 in [0, 1]."
        )
    if not 2 <= x.ndim <= 4 or x.size == 0:
        raise TrainingError(
            f"{name}: the array has shape {x.shape}; it must be (rows, values), "
            "(rows, height, width) or (rows, height, width, channels), none of them 0."
        )
    if x.ndim == 4 and x.shape[3] not in (1, 3):
        raise TrainingError(
            f"{name}: images have {x.shape[3]} channels (shape {x.shape}); make it 1 or 3, "
            "and the last axis."
        )
    if x.dtype.kind == "f" and not columns:
        x = _in_range(name, x, beyond)
    if y is not None:
        if y.shape == (len(x), 1):  # a column
            y = y[:, 0]
        if y.shape != (len(x),):
            raise TrainingError(
                f"{name}: {len(x)} rows have labels of shape {y.shape}; give one label for each."
            )
        if y.dtype.kind not in "iu":
            raise TrainingError(f"{name}: labels are {y.dtype}; make them integers.")
    with warnings.catch_warnings():  # rows of a mapped file are read only, and nothing writes rows
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        rows = torch.from_numpy(np.ascontiguousarray(x))
    return rows, None if y is None else torch.from_numpy(y.astype(np.int64))


def _in_range(name: str, x: Array, beyond: list[str] | None) -> Array:
    """The same values as float32 in [0, 1], or as any finite float32 if `beyond` is a list."""
    with np.errstate(over="ignore"):  # infinite values are rejected below
        x = x.astype(np.float32, copy=False)
    np.copyto(x, 0, where=(x < 0) & (x >= -ROUNDING))
    np.copyto(x, 1, where=(x > 1) & (x <= 1 + ROUNDING))
    inside = (x >= 0) & (x <= 1)  # False for NaN
    good = inside if beyond is None else np.isfinite(x)
    if not good.all():
        row, *_ = place = tuple(int(n) for n in np.unravel_index(np.argmin(good), x.shape))
        wrong = "outside [0, 1]" if beyond is None else "not a finite number"
        raise TrainingError(
            f"{name}: row {row} holds {x[place]} at {place[1:]}, {wrong}. Scale and clean "
            "the values, or save bytes 0..255 as uint8."
        )
    if beyond is not None and not inside.all():
        rows = np.count_nonzero(~inside.reshape(len(x), -1).all(1))
        beyond.append(
            f"{name}: {np.count_nonzero(~inside):,} of {x.size:,} values lie outside [0, 1], in "
            f"{rows:,} of {len(x):,} rows. They are scored as they are."
        )
    return x


def _check_dark_bytes(name: str, x: Tensor) -> list[str]:
    """A warning if the bytes probably have another range than 0..255. Bytes of only 0 and 1 are
    rejected: the net would see 0 and 1/255, and the posterior would collapse. No flag overrides
    this, because multiplying by 255 loses nothing."""
    # In parts, because most data is bright in the first, and all of it may be larger than memory.
    if x.dtype != torch.uint8 or any(int(part.max()) > _DARK for part in torch.split(x, 1024)):
        return []
    largest = int(x.max())
    if largest <= 1:
        raise TrainingError(
            f"{name}: the largest byte is {largest} of 255, so all rows are black, or nearly. If "
            "these are masks of 0 and 1, multiply them by 255, or save them as float32."
        )
    return [
        f"{name}: the largest byte is {largest} of 255, so all rows are dark. If their range is "
        f"0..{largest}, scale it to 0..255, or save x / {largest} as float32."
    ]


def _format_rows(x: Tensor) -> str:
    return f"{x.dtype} {tuple(x.shape[1:])}".removeprefix("torch.")
