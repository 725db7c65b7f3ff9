"""Reads tables, CSV and Parquet: each column becomes numbers, as `latentd.columns` says.

Columns of numbers are numeric. Those of text and booleans are categorical. Other kinds of values,
such as times, are errors that name the column. In a file of one column, an empty line is a missing
value.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from latentd import csv_tables
from latentd.columns import MAX_LEVELS, MAX_NAME, OTHER, Column
from latentd.tables import as_level
from latentd.training.array import Array
from latentd.training.config import Config
from latentd.training.errors import TrainingError
from latentd.training.files import printable, read_plain, require_memory
from latentd.training.readers.arrays import Arrays

_PARQUET: Final = (".parquet", ".pq")
TABLES: Final = (*csv_tables.SUFFIXES, *_PARQUET)
"""The usual suffixes of tables."""
_SHOWN: Final = 40  # characters of a value in a message
_MEMORY: Final = 8  # times a file's bytes: Arrow's columns and the rows


class TableOptions(NamedTuple):
    """Which columns are read, and how. The names are those of the flags."""

    ignore_columns: tuple[str, ...] = ()
    categorical_columns: tuple[str, ...] = ()
    label_column: str | None = None

    @classmethod
    def of(cls, config: Config) -> TableOptions:
        """A run's own."""
        ignored, categorical = config.ignore_columns, config.categorical_columns
        return cls(_split(ignored), _split(categorical), config.label_column)


def _split(names: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (names or "").split(",") if name.strip())


def read_table(path: Path, options: TableOptions) -> Arrays:
    """Read a table. x: float64 (rows, columns), NaN where a value is missing. Its notes say which
    columns are categorical. Raises TrainingError, which names the column or the line at fault."""
    name = printable(path)
    table = _open(path)
    names = table.column_names
    _check_names(name, names, options)
    labels: Array | None = None
    classes: tuple[str, ...] = ()
    notes = [f"{name}: {table.num_rows:,} rows."]
    if options.label_column:
        labels, classes = _labels(name, options.label_column, table.column(options.label_column))
    columns: list[Column] = []
    numbers: list[Array] = []
    if not table.num_rows:
        raise TrainingError(f"{name} has no rows to learn from, only the names of its columns.")
    left_out = {*options.ignore_columns, options.label_column}
    for column_name in names:
        if column_name in left_out:
            continue
        values = table.column(column_name)
        is_chosen = column_name in options.categorical_columns
        if is_chosen or not _is_numeric(values.type):
            column, found = _categorical_column(name, column_name, values, is_chosen)
        else:
            column, found = Column(column_name), _numeric_column(values)
        columns.append(column)
        numbers.append(found)
    if not columns:
        raise TrainingError(f"{name} has no column to learn from; --ignore-columns names all.")
    notes += _describe(name, columns)
    return Arrays(
        np.stack(numbers, axis=1),
        labels,
        classes=classes,
        notes=tuple(notes),
        columns=tuple(columns),
    )


def _open(path: Path) -> Any:
    """The file as an Arrow table."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise TrainingError(
            "--data table:FILE needs pyarrow: pip install 'latentd[train]' brings it."
        ) from None
    name, suffix = printable(path), path.suffix.lower()
    content = read_plain(path, "table:FILE names a CSV or Parquet file")
    require_memory(name, _MEMORY * len(content), "Use fewer rows, or a machine with more memory.")
    if not content.strip():
        raise TrainingError(f"{name} is empty; a CSV file begins with a line of column names.")
    try:
        if suffix in _PARQUET:
            return pq.read_table(pa.BufferReader(content))
        return csv_tables.parse(content, str(path))
    except UnicodeDecodeError:
        raise TrainingError(
            f"{name}: the names of its columns are not UTF-8; save the file as UTF-8."
        ) from None
    except (pa.ArrowInvalid, OSError) as error:
        is_parquet = suffix in _PARQUET
        kind = "a Parquet file" if is_parquet else "a CSV file"
        first = (str(error).splitlines() or [type(error).__name__])[0]
        why = first.removeprefix("CSV parse error: ").rstrip(".: ")
        advice = " Each line of a CSV file has a value for each column of its first line."
        if b";" in content.splitlines()[0] and suffix not in _PARQUET:
            advice = (
                " The first line has ';': expected values separated by commas, and decimal points."
            )
        raise TrainingError(
            f"{name} cannot be read as {kind}: {why}.{'' if is_parquet else advice}"
        ) from None


def _check_names(name: str, names: list[str], options: TableOptions) -> None:
    if not names:
        raise TrainingError(f"{name} has no columns.")
    repeated = [column for column, count in Counter(names).items() if count > 1]
    if repeated:
        raise TrainingError(f"{name} has two columns {repeated[0]!r}; give them different names.")
    if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
        raise TrainingError(
            f"{name} has one column, {names[0][:_SHOWN]!r}: it seems to be separated otherwise. "
            "Use commas and decimal points, or the suffix .tsv for tabs."
        )
    if all(map(_is_number, names)):
        raise TrainingError(
            f"{name}: the first line holds numbers, {names[0]!r} first; it must name the columns."
        )
    for column in names:
        if not column or len(column) > MAX_NAME or not column.isprintable():
            raise TrainingError(
                f"{name}: column {names.index(column) + 1} is called {column[:_SHOWN]!r}; a name "
                f"has 1 to {MAX_NAME} printable characters."
            )
    for flag, given in (
        ("--ignore-columns", options.ignore_columns),
        ("--categorical-columns", options.categorical_columns),
        ("--label-column", (options.label_column,) if options.label_column else ()),
    ):
        for column in given:
            if column not in names:
                raise TrainingError(
                    f"{flag}: {name} has no column {column!r}; it has {', '.join(names[:20])}."
                )


def _is_numeric(kind: Any) -> bool:
    import pyarrow as pa

    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def _numeric_column(values: Any) -> Array:
    import pyarrow as pa

    found = values.cast(pa.float64(), safe=False).to_numpy()
    return np.array(found, np.float64)


def _categorical_column(
    name: str, column: str, values: Any, is_chosen: bool
) -> tuple[Column, Array]:
    """A categorical column, its levels in order, and the index of each value's level. is_chosen: a
    flag says that it is one."""
    texts = _texts(name, column, values)
    levels = sorted({text for text in texts if text is not None and text != OTHER})
    if not levels:
        raise TrainingError(f"{name}: column {column!r} has no value. Use --ignore-columns.")
    if not is_chosen:
        wrong = [level for level in levels if not _is_number(level)]
        if 0 < 2 * len(wrong) < len(levels):
            raise TrainingError(
                f"{name}: column {column!r} holds numbers, but also {wrong[0][:_SHOWN]!r}. "
                "Correct or empty such values, name it in --categorical-columns if it holds "
                "codes, or leave it out with --ignore-columns."
            )
    if len(levels) > MAX_LEVELS:
        raise TrainingError(
            f"{name}: column {column!r} has {len(levels):,} different values; {MAX_LEVELS} "
            "are the limit. Group its values, or leave the column out with --ignore-columns."
        )
    for level in levels:
        if not 1 <= len(level) <= MAX_NAME or not level.isprintable():
            raise TrainingError(
                f"{name}: column {column!r} has the value {level[:_SHOWN]!r}; values have 1 "
                f"to {MAX_NAME} printable characters."
            )
    index: dict[str | None, float] = {level: number for number, level in enumerate(levels)}
    index |= {None: np.nan, OTHER: len(levels)}
    return Column(column, tuple(levels)), np.array([index[text] for text in texts], np.float64)


def _texts(name: str, column: str, values: Any) -> list[str | None]:
    import pyarrow as pa

    types, kind = pa.types, values.type
    if types.is_dictionary(kind):
        kind = kind.value_type
    plain = types.is_string(kind) or types.is_large_string(kind) or types.is_boolean(kind)
    if not (plain or types.is_null(kind) or _is_numeric(kind)):
        raise TrainingError(
            f"{name}: column {column!r} holds {kind}; numbers, text and booleans can be learned. "
            "Turn it into numbers, or leave it out with --ignore-columns."
        )
    return [as_level(value) for value in values.to_pylist()]


def _labels(name: str, column: str, values: Any) -> tuple[Array, tuple[str, ...]]:
    """The labels of the rows, which evaluation uses and training does not see."""
    found, numbers = _categorical_column(name, column, values, is_chosen=True)
    if np.isnan(numbers).any():
        raise TrainingError(f"{name}: rows without a label in column {column!r} (--label-column).")
    return numbers.astype(np.int64), found.levels


def _describe(name: str, columns: list[Column]) -> list[str]:
    categorical = [column for column in columns if column.is_categorical]
    if not categorical:
        return []
    shown = ", ".join(f"{c.name!r} ({len(c.levels)} values)" for c in categorical[:10])
    more = f" and {len(categorical) - 10} more" if len(categorical) > 10 else ""
    return [f"{name}: categorical columns are {shown}{more}."]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
