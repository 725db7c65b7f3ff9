"""Read tables, CSV and Parquet, whose columns are those of a model.

A file is read whole: its rows as numbers are a part of its own bytes. A CSV file begins with a line
of column names. A row with a bad value becomes a bad row, and so does a line with too few or too
many values. Columns that are not the model's are ignored. In a file of one column, an empty line is
a row without a value.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from latentd import csv_tables, tables
from latentd.codec import Array
from latentd.columns import Column
from latentd.errors import BadData, ConfigError
from latentd.model_description import ModelDescription
from latentd.readers import files
from latentd.readers.files import FileOpener
from latentd.readers.rows import BadRow, Chunk, make_chunk


class TableReader:
    """See rows.Reader. id_column: column of the rows' names; "": the row numbers."""

    def __init__(
        self,
        path: str,
        model: ModelDescription,
        id_column: str = "",
        open_file: FileOpener = files.open_file,
    ) -> None:
        self._x, name = model.default.x, files.printable(path)
        columns = self._x.columns
        if not columns:
            raise ConfigError(
                f"{name} is a table; this model takes {self._x.plural} of {self._x.dtype} "
                f"{model.x.shape}."
            )
        with open_file(path) as file:
            table, ragged = _read(path, file, {*(column.name for column in columns), id_column})
        if lacking := tables.missing(columns, table.column_names):
            raise ConfigError(f"{name} has no column {lacking[0]!r}, which the model needs.")
        if id_column and id_column not in table.column_names:
            raise ConfigError(f"{name} has no column {id_column} (--id-column).")
        for wanted in (*(column.name for column in columns), id_column):
            if wanted and table.column_names.count(wanted) > 1:
                raise ConfigError(f"{name} has two columns {wanted!r}; give them different names.")
        values = {c.name: _values(c, table.column(c.name)) for c in columns}
        good, faults = tables.to_rows(columns, values, table.num_rows)
        ids = table.column(id_column).to_pylist() if id_column else None
        self._place(good, faults, ids, ragged)

    def _place(
        self, good: Array, faults: dict[int, str], ids: list[Any] | None, ragged: dict[int, str]
    ) -> None:
        """Number the rows as the file has them, with the ragged ones among them."""
        self.rows: int = len(good) + len(ragged)
        kept = np.setdiff1d(np.arange(self.rows), np.fromiter(ragged, np.int64))
        self._values = np.zeros((self.rows, *self._x.shape), np.float32)
        self._values[kept] = good
        self._faults = ragged | {int(kept[row]): reason for row, reason in faults.items()}
        self._ids = list(map(str, range(self.rows)))
        for row, name in zip(kept.tolist(), ids or (), strict=False):
            self._ids[row] = tables.as_level(name) or ""

    def read(self, start: int, stop: int) -> Chunk:
        faults = self._faults
        rows = range(start, stop)
        bad = [BadRow(row, self._ids[row], faults[row]) for row in rows if row in faults]
        chunk = make_chunk(self._values[start:stop], self._ids[start:stop], start, self._x)
        keep = np.array([int(row) not in faults for row in chunk.rows], bool)
        ids = [name for name, is_kept in zip(chunk.ids, keep, strict=True) if is_kept]
        return Chunk(chunk.rows[keep], ids, chunk.x[keep], bad)

    def close(self) -> None:
        self._values = self._values[:0]


def has_columns(path: str, model: ModelDescription) -> bool:
    """Whether a Parquet file has all columns of a model. False for models without columns."""
    if not model.x.columns:
        return False
    try:
        import pyarrow.parquet as pq

        with files.open_file(path) as file:
            names = pq.ParquetFile(file).schema_arrow.names
    except Exception:  # the reader that opens it next says what is wrong
        return False
    return not tables.missing(model.x.columns, names)


def _read(path: str, file: Any, wanted: Collection[str]) -> tuple[Any, dict[int, str]]:
    """The file as an Arrow table, and why lines between its rows are no rows, by row."""
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise ConfigError(f"{path} needs pyarrow: pip install 'latentd[jobs]'.") from None
    name = files.printable(path)
    try:
        if not path.lower().endswith(csv_tables.SUFFIXES):
            return pq.ParquetFile(file).read(columns=list(wanted)), {}
        ragged: dict[int, str] = {}
        # Text, so that one bad number makes one bad row.
        return csv_tables.parse(file.read(), path, wanted, ragged), ragged
    except UnicodeDecodeError:
        raise BadData(
            f"{name}: the names of its columns are not UTF-8; save the file as UTF-8."
        ) from None
    except (BadData, ConfigError, MemoryError):
        raise
    except Exception as error:  # Arrow can raise anything on damaged bytes
        if files.is_machine_error(error):
            raise
        raise BadData(f"{name} cannot be read as a table: {files.describe(error)}.") from None


def _values(column: Column, values: Any) -> Any:
    """An Arrow column as numbers with NaN for missing ones, or else as Python's values."""
    import pyarrow as pa

    if not column.is_categorical:
        try:
            return values.cast(pa.float64(), safe=False).to_numpy()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # not all of them are numbers
            pass
    return values.to_pylist()
