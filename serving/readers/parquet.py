"""Read rows from a Parquet column: lists of numbers, bytes, or image files.

The column is read forward in small batches. Whole row groups between two ranges are skipped, so a
worker that makes every other shard decodes a file at most once.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from latentd import images
from latentd.bundle import DataSpec, RowShapes
from latentd.codec import Array
from latentd.errors import BadData, ConfigError, InvalidArgument
from latentd.model_description import ModelDescription
from latentd.readers import files
from latentd.readers.files import FileOpener
from latentd.readers.pictures import decode, find_shapes
from latentd.readers.rows import BadRow, Chunk, check_same_size, join, make_chunk
from latentd.readers.texts import to_chunk

_BATCH: Final = 1024  # rows decoded at once
_NO_BYTES: Final = (
    "its bytes are null; paths are not read, so write the image's bytes into the table"
)


class ParquetColumnReader:
    """See rows.Reader.

    column:    column of the data; "": x, or the only suitable one
    id_column: column of the rows' names; "": the row numbers
    """

    def __init__(
        self,
        path: str,
        model: ModelDescription,
        column: str = "",
        id_column: str = "",
        fit: str = "refuse",
        open_file: FileOpener = files.open_file,
    ) -> None:
        try:
            import pyarrow.parquet as pq
        except ImportError:
            raise ConfigError(f"{path} needs pyarrow: pip install 'latentd[jobs]'.") from None
        self._path, self._model, self._fit = path, model, fit
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
            self.column = _choose(
                self._parquet.schema_arrow,
                column,
                files.printable(path),
                model.x.is_text,
            )
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
        return join(chunks, self._model.default.x)

    def row_shapes(self) -> Iterator[RowShapes | None]:
        """Of each row, in order; None: the row has no size that the model takes. Only image files
        are looked at: all other rows have the default size. Raises BadData."""
        at, default = 0, self._model.default
        if self._fit != "refuse" or not self._model.axes or not self._may_be_images():
            yield from itertools.repeat(default, self.rows)
            return
        while at < self.rows:
            _, batch = self._containing(at)
            values, _ = _values(batch.column(0))
            for value in values:
                data = value.as_py()
                try:
                    with images.pillow_warnings_ignored():
                        is_raw = data is None or len(data) == default.x.nbytes
                        found = default if is_raw else find_shapes(data, self._model, self._fit)
                except InvalidArgument:
                    yield None
                else:
                    yield found
            at += batch.num_rows

    def close(self) -> None:
        self._batches = iter(())
        self._parquet.close()
        self._file.close()

    def _may_be_images(self) -> bool:
        """Whether the column holds bytes, which may be image files."""
        import pyarrow as pa

        kind = self._parquet.schema_arrow.field(self.column).type
        return not (
            pa.types.is_list(kind)
            or pa.types.is_large_list(kind)
            or pa.types.is_fixed_size_list(kind)
        )

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
        column = batch.column(0)
        if len(self._columns) > 1:
            ids = [str(value) for value in batch.column(1).to_pylist()]
        else:
            ids = list(map(str, range(start, start + len(column))))
        column, missing = _values(column)
        if self._model.x.is_text and _is_text(column.type):
            texts = [None if text is None else text.encode() for text in column.to_pylist()]
            return to_chunk(texts, ids, start, self._model.default.x)
        x = self._model.default.x
        whole = _as_array(column, x)
        if whole is not None:
            return make_chunk(whole, ids, start, x)
        good: list[tuple[int, Array]] = []
        bad = []
        for index, value in enumerate(column):
            try:
                if not value.is_valid:
                    raise InvalidArgument("x", missing)
                row = _row(value.as_py(), self._model, self._fit)
                check_same_size(row.shape, good[0][1].shape if good else row.shape)
                good.append((index, row))
            except InvalidArgument as error:
                bad.append(BadRow(start + index, ids[index], error.reason))
            except Exception as error:  # a value that Arrow cannot convert to Python
                if files.is_machine_error(error):
                    raise
                reason = f"cannot be read: {files.describe(error)}"
                bad.append(BadRow(start + index, ids[index], reason))
        if good:
            x = dataclasses.replace(x, shape=good[0][1].shape)
        values = np.array([row for _, row in good], x.dtype).reshape(-1, *x.shape)
        chunk = make_chunk(values, [ids[i] for i, _ in good], 0, x)
        numbers = np.array([start + i for i, _ in good], np.int64)
        bad += [BadRow(int(numbers[b.row]), b.id, b.reason) for b in chunk.bad]
        bad.sort(key=lambda b: b.row)
        return Chunk(numbers[chunk.rows], chunk.ids, chunk.x, bad, chunk.values_outside_range)


def _values(column: Any) -> tuple[Any, str]:
    """The column with the rows' values, and why a row without one is bad."""
    import pyarrow as pa

    if pa.types.is_struct(column.type):
        return column.field("bytes"), _NO_BYTES
    return column, "no value"


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):  # as categories of pandas are written
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _choose(schema: Any, column: str, path: str, texts: bool = False) -> str:
    """The column of the data. texts: the model's rows are texts, which may be strings."""
    import pyarrow as pa

    wanted = "strings" if texts else "lists or bytes"

    def fits(kind: Any) -> bool:
        if texts:
            return _is_text(kind)
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
            f"{path}: column {column} has type {schema.field(column).type}; expected "
            f"{wanted}. Columns with {wanted}: {', '.join(able) or 'none'}."
        )
    if chosen not in able:
        raise ConfigError(
            f"{path}: set --column to the column of the data. Columns with {wanted}: "
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


def _row(value: Any, model: ModelDescription, fit: str) -> Array:
    """One row from a value of a column. Raises InvalidArgument with the reason."""
    x = model.default.x
    if isinstance(value, bytes):
        if len(value) == x.nbytes:
            return np.frombuffer(value, x.dtype).reshape(x.shape)
        if x.is_8bit_image:
            with images.pillow_warnings_ignored():
                return decode(value, model, fit)
        raise InvalidArgument("x", f"expected {x.nbytes} bytes for a row, got {len(value)}")
    try:
        numbers = np.array(value, np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise InvalidArgument("x", "not a numeric list, or it contains nulls") from None
    if len(numbers) != x.size:
        raise InvalidArgument("x", f"expected {x.size} numbers for a row, got {len(numbers)}")
    if x.dtype == "uint8" and not ((numbers % 1 == 0) & (numbers >= 0) & (numbers <= 255)).all():
        raise InvalidArgument("x", "values are not integers in 0..255")
    return numbers.astype(x.dtype).reshape(x.shape)
