"""Read rows from a Parquet column: lists of numbers, bytes, or image files.

The column is read forward in small batches. Whole row groups between two ranges are skipped, so a
worker that makes every other shard decodes a file at most once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from latentd import images
from latentd.bundle import DataSpec
from latentd.codec import Array
from latentd.errors import BadData, ConfigError, InvalidArgument
from latentd.readers import files
from latentd.readers.files import FileOpener
from latentd.readers.rows import BadRow, Chunk, make_chunk

_BATCH: Final = 1024  # rows decoded at once
_NO_BYTES: Final = (
    "its bytes are null; paths are not read, so write the image's bytes into the table"
)


class TableReader:
    """See rows.Reader.

    column:    column of the data; "": x, or the only suitable one
    id_column: column of the rows' names; "": the row numbers
    """

    def __init__(
        self,
        path: str,
        x: DataSpec,
        column: str = "",
        id_column: str = "",
        resize: bool = False,
        open_file: FileOpener = files.open_file,
    ) -> None:
        try:
            import pyarrow.parquet as pq
        except ImportError:
            raise ConfigError(f"{path} needs pyarrow: pip install 'latentd[jobs]'.") from None
        self._path, self._x, self._resize = path, x, resize
        self._file = open_file(path)
        try:
            # Without a buffer Arrow would read a whole row group at once.
            self._parquet = pq.ParquetFile(self._file, buffer_size=1 << 20, pre_buffer=False)
        except BadData:
            self._file.close()
            raise
        except Exception as error:  # Arrow can raise anything on damaged bytes
            self._file.close()
            if files.is_machine_error(error):
                raise
            raise BadData(
                f"{files.printable(path)} cannot be read as Parquet: {files.describe(error)}."
            ) from None
        metadata = self._parquet.metadata
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._ends = np.cumsum(groups, dtype=np.int64)
        self.rows: int = metadata.num_rows
        try:
            self.column = _choose(self._parquet.schema_arrow, column, files.printable(path))
            if id_column and id_column not in self._parquet.schema_arrow.names:
                raise ConfigError(
                    f"{files.printable(path)} has no column {id_column} (--id-column)."
                )
        except ConfigError:
            self._parquet.close()
            self._file.close()
            raise
        self._columns = [self.column] + ([id_column] if id_column else [])
        self._batches: Iterator[Any] = iter(())
        self._next_row = self.rows  # first row of the next batch
        self._batch: Any = None  # the last decoded batch

    def read(self, start: int, stop: int) -> Chunk:
        chunks, at = [], start
        while at < stop:
            first, batch = self._containing(at)
            taken = batch.slice(at - first, min(stop, first + batch.num_rows) - at)
            chunks.append(self._rows(taken, at))
            at += taken.num_rows
        if len(chunks) == 1:
            return chunks[0]
        return Chunk(
            np.concatenate([c.rows for c in chunks] or [np.empty(0, np.int64)]),
            [name for c in chunks for name in c.ids],
            np.concatenate([c.x for c in chunks] or [np.empty((0, *self._x.shape), self._x.dtype)]),
            [row for c in chunks for row in c.bad],
            np.concatenate([c.counts_outside for c in chunks] or [np.empty(0, np.uint32)]),
        )

    def close(self) -> None:
        self._batches = iter(())
        self._parquet.close()
        self._file.close()

    def _containing(self, row: int) -> tuple[int, Any]:
        """The decoded batch with `row`, and the number of its first row."""
        group = int(np.searchsorted(self._ends, row, side="right"))
        first = self._next_row - (self._batch.num_rows if self._batch is not None else 0)
        reached = int(np.searchsorted(self._ends, self._next_row, side="right"))
        if row < first or group > reached:
            self._batches = self._parquet.iter_batches(
                _BATCH, range(group, len(self._ends)), columns=self._columns
            )
            self._next_row, self._batch = int(self._ends[group - 1]) if group else 0, None
        while self._batch is None or row >= self._next_row:
            try:
                self._batch = next(self._batches)
            except BadData:
                raise
            except StopIteration:
                raise BadData(
                    f"{files.printable(self._path)} declares {self.rows:,} rows but ends before "
                    f"row {row:,}."
                ) from None
            except Exception as error:
                if files.is_machine_error(error):
                    raise
                path, why = files.printable(self._path), files.describe(error)
                raise BadData(f"{path} is damaged ({why}). Copy it again.") from None
            self._next_row += self._batch.num_rows
        return self._next_row - self._batch.num_rows, self._batch

    def _rows(self, batch: Any, start: int) -> Chunk:
        import pyarrow as pa

        column = batch.column(0)
        if len(self._columns) > 1:
            ids = [str(value) for value in batch.column(1).to_pylist()]
        else:
            ids = list(map(str, range(start, start + len(column))))
        missing = "no value"
        if pa.types.is_struct(column.type):
            column, missing = column.field("bytes"), _NO_BYTES
        whole = _as_array(column, self._x)
        if whole is not None:
            return make_chunk(whole, ids, start, self._x)
        good, bad = [], []
        for index, value in enumerate(column):
            try:
                if not value.is_valid:
                    raise InvalidArgument("x", missing)
                good.append((index, _row(value.as_py(), self._x, self._resize)))
            except InvalidArgument as error:
                bad.append(BadRow(start + index, ids[index], error.reason))
            except Exception as error:  # a value that Arrow cannot convert to Python
                if files.is_machine_error(error):
                    raise
                reason = f"cannot be read: {files.describe(error)}"
                bad.append(BadRow(start + index, ids[index], reason))
        x = np.array([row for _, row in good], self._x.dtype).reshape(-1, *self._x.shape)
        chunk = make_chunk(x, [ids[i] for i, _ in good], 0, self._x)
        numbers = np.array([start + i for i, _ in good], np.int64)
        bad += [BadRow(int(numbers[b.row]), b.id, b.reason) for b in chunk.bad]
        bad.sort(key=lambda b: b.row)
        return Chunk(numbers[chunk.rows], chunk.ids, chunk.x, bad, chunk.outside)


def _choose(schema: Any, column: str, path: str) -> str:
    import pyarrow as pa

    def fits(kind: Any) -> bool:
        if pa.types.is_struct(kind):  # the format of Hugging Face datasets for images
            return bool(kind.get_field_index("bytes") >= 0)
        return bool(
            pa.types.is_binary(kind)
            or pa.types.is_large_binary(kind)
            or pa.types.is_fixed_size_binary(kind)
            or pa.types.is_list(kind)
            or pa.types.is_large_list(kind)
            or pa.types.is_fixed_size_list(kind)
        )

    able = [field.name for field in schema if fits(field.type)]
    chosen = column or ("x" if "x" in able else able[0] if len(able) == 1 else "")
    if column in schema.names and column not in able:
        raise ConfigError(
            f"{path}: column {column} has type {schema.field(column).type}; expected lists or "
            f"bytes. Columns with lists or bytes: {', '.join(able) or 'none'}."
        )
    if chosen not in able:
        raise ConfigError(
            f"{path}: set --column to the column of the data. Columns with lists or bytes: "
            f"{', '.join(able) or 'none'}."
        )
    return chosen


def _as_array(column: Any, x: DataSpec) -> Array | None:
    """The column without a copy, if every row has exactly x's numbers; else None."""
    import pyarrow as pa

    rows, kind = len(column), column.type
    if column.null_count or not rows:
        return None
    if pa.types.is_binary(kind):
        offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset :][: rows + 1]
        if (np.diff(offsets) != x.nbytes).any():
            return None
        data = column.buffers()[2]
        values: Array = np.frombuffer(data, x.dtype, rows * x.size, int(offsets[0]))
    elif pa.types.is_fixed_size_binary(kind) and kind.byte_width == x.nbytes:
        values = np.frombuffer(
            column.buffers()[1], x.dtype, rows * x.size, column.offset * x.nbytes
        )
    elif (
        pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    ):
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        flat = column.flatten()
        if (lengths != x.size).any() or flat.null_count or not _same_numbers(flat.type, x):
            return None
        values = flat.to_numpy(zero_copy_only=False)
    else:
        return None
    return values.reshape(rows, -1)


def _same_numbers(kind: Any, x: DataSpec) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_uint8(kind) if x.dtype == "uint8" else pa.types.is_floating(kind))


def _row(value: Any, x: DataSpec, resize: bool) -> Array:
    """One row from a value of a column. Raises InvalidArgument with the reason."""
    if isinstance(value, bytes):
        if len(value) == x.nbytes:
            return np.frombuffer(value, x.dtype)
        if images.is_png_compatible(x):
            with images.pillow_warnings_ignored():
                return images.decode_image(value, x, "x", None, resize).reshape(-1)
        raise InvalidArgument("x", f"expected {x.nbytes} bytes for a row, got {len(value)}")
    try:
        numbers = np.array(value, np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise InvalidArgument("x", "not a numeric list, or it contains nulls") from None
    if len(numbers) != x.size:
        raise InvalidArgument("x", f"expected {x.size} numbers for a row, got {len(numbers)}")
    if x.dtype == "uint8" and not ((numbers % 1 == 0) & (numbers >= 0) & (numbers <= 255)).all():
        raise InvalidArgument("x", "values are not integers in 0..255")
    return numbers.astype(x.dtype)
