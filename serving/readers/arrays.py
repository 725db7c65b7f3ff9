"""Read ranges of rows from arrays in files: .npy, .npz, IDX; .npy and IDX also with .gz.

Files are read and not memory-mapped: memory holds only the requested rows, and remote files work
like local ones. Before anything is allocated, the header is checked against the size of the file: a
header that declares more than the file can hold is rejected.
"""

from __future__ import annotations

import gzip
import math
import re
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np

from latentd.codec import Array
from latentd.errors import BadData, ConfigError
from latentd.model_description import ModelDescription
from latentd.readers import files, kinds
from latentd.readers.files import FileOpener
from latentd.readers.rows import Chunk, check_signature, make_chunk

MAX_WHOLE_BYTES: Final = 4 << 30
"""The maximum size of an array that must be in memory as a whole."""

_NPZ: Final = re.compile(r"(.+\.npz):(.+)", re.IGNORECASE)
_MAX_EXPANSION: Final = 1032
"""The maximum expansion of one byte by deflate, which .gz and .npz use."""


@dataclass(frozen=True, slots=True)
class _Header:
    """dtype and shape of the array, rows first; data_offset: where its data starts."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    data_offset: int
    columns_first: bool = False

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class ArrayFile:
    """One open array in a file. `path` may be FILE.npz:key.

    keys: names to try, in order, in an .npz without a key; else its only array is used.
    Raises BadData if the file has no array of rows or less data than its header declares,
    ConfigError if an .npz lacks the key.
    """

    def __init__(
        self, path: str, keys: Sequence[str] = ("x",), open_file: FileOpener = files.open_file
    ) -> None:
        self._path, self._stack, self._open_file = path, ExitStack(), open_file
        self._whole: Array | None = None
        try:
            self._file, max_bytes, kind = self._open_unpacked(keys)
            self._header = _read_idx(self._file) if kind == "idx" else _read_npy(self._file)
            self._check_size(max_bytes)
            if self._header.columns_first:
                self._whole = self._read_columns()
        except (BadData, ConfigError):
            self.close()
            raise
        except Exception as error:  # numpy can raise anything on damaged bytes
            self.close()
            if files.is_machine_error(error):
                raise
            raise BadData(
                f"{files.printable(path)} cannot be read as an array: {files.describe(error)}."
            ) from None
        except BaseException:
            self.close()
            raise

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._header.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return self._header.shape

    @property
    def nbytes(self) -> int:
        return self._header.shape[0] * self._header.row_bytes

    def read(self, start: int, stop: int) -> Array:
        """Rows start..stop. Raises BadData if the file is damaged there."""
        if self._whole is not None:
            return np.ascontiguousarray(self._whole[start:stop])
        header = self._header
        data = self._read_at(header.data_offset + start * header.row_bytes, stop - start)
        return np.frombuffer(data, header.dtype).reshape(-1, *header.shape[1:])

    def close(self) -> None:
        self._stack.close()

    def _open_unpacked(self, keys: Sequence[str]) -> tuple[BinaryIO, int, str]:
        """The uncompressed bytes of the array, their maximum number, and the kind of file."""
        path, key = file_and_key(self._path)
        kind = kinds.kind_of(path) or "idx"
        file = self._stack.enter_context(self._open_file(path))
        size = file.seek(0, 2)
        file.seek(0)
        if kind == "npz":
            packed = self._stack.enter_context(zipfile.ZipFile(file))
            member = packed.getinfo(_member(packed, path, key, keys))
            opened: Any = self._stack.enter_context(packed.open(member))
            return opened, min(member.file_size, _MAX_EXPANSION * member.compress_size), kind
        if path.lower().endswith(".gz"):
            stream: Any = self._stack.enter_context(gzip.GzipFile(fileobj=file))
            return stream, _MAX_EXPANSION * size, kind
        return file, size, kind

    def _check_size(self, max_bytes: int) -> None:
        header = self._header
        if self.nbytes > max_bytes - header.data_offset:
            raise BadData(
                f"{files.printable(self._path)} declares {header.shape[0]:,} rows of "
                f"{header.row_bytes:,} bytes, which the file cannot hold. Copy it again."
            )
        if not header.row_bytes:
            raise ValueError(f"its rows are empty (shape {list(header.shape)})")

    def _read_columns(self) -> Array:
        """An array in Fortran order, whose rows are not contiguous in the file."""
        header = self._header
        if self.nbytes > MAX_WHOLE_BYTES:
            raise ValueError("large and in Fortran order; save it with numpy.ascontiguousarray")
        data = self._read_at(header.data_offset, header.shape[0])
        return np.frombuffer(data, header.dtype).reshape(header.shape[::-1]).T

    def _read_at(self, offset: int, rows: int) -> bytes:
        path = files.printable(self._path)
        wanted = rows * self._header.row_bytes
        try:
            self._file.seek(offset)
            data = self._file.read(wanted)
        except BadData:
            raise
        except Exception as error:
            if files.is_machine_error(error):
                raise
            raise BadData(f"{path} is damaged ({files.describe(error)}). Copy it again.") from None
        if len(data) != wanted:
            raise BadData(
                f"{path} declares {self.shape[0]:,} rows but ends before the last. Copy it again."
            )
        return data


class ArrayReader:
    """See rows.Reader. `path` may be FILE.npz:key."""

    def __init__(
        self, path: str, model: ModelDescription, open_file: FileOpener = files.open_file
    ) -> None:
        self._array = ArrayFile(path, open_file=open_file)
        try:
            self.shapes = check_signature(
                self._array.dtype, self._array.shape[1:], model, files.printable(path)
            )
        except ConfigError:
            self.close()
            raise
        self.rows = self._array.shape[0]

    def read(self, start: int, stop: int) -> Chunk:
        values = self._array.read(start, stop)
        ids = list(map(str, range(start, stop)))
        return make_chunk(values, ids, start, self.shapes.x)

    def close(self) -> None:
        self._array.close()


def file_and_key(path: str) -> tuple[str, str]:
    """The file and the key: FILE.npz and key for FILE.npz:key; otherwise the key is ""."""
    archive = _NPZ.fullmatch(path)
    return (archive[1], archive[2]) if archive else (path, "")


def _member(packed: zipfile.ZipFile, path: str, key: str, keys: Sequence[str]) -> str:
    """The name of the array: `key`, the first of `keys` that exists, or the only one."""
    names = [name.removesuffix(".npy") for name in packed.namelist()]
    first = next((name for name in keys if name in names), names[0] if len(names) == 1 else "")
    chosen = key or first
    if chosen not in names:
        raise ConfigError(
            f"{files.printable(path)} has no array named {chosen or ' or '.join(keys)}. "
            f"Use one of: {files.printable(path)}:{' or '.join(names) or '(none)'}."
        )
    return next(name for name in (f"{chosen}.npy", chosen) if name in packed.namelist())


def _read_npy(file: BinaryIO) -> _Header:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, columns_first, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, columns_first, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError("a structured array")
    if dtype.hasobject:
        raise ValueError("it holds Python objects; save a numeric array")
    if not shape or min(shape) < 0:
        raise ValueError("expected rows, got a single number")
    return _Header(dtype, shape, file.tell(), columns_first and len(shape) > 1)


def _read_idx(file: BinaryIO) -> _Header:
    """Format: http://yann.lecun.com/exdb/mnist/ (two zero bytes, type, dimensions, sizes, data)."""
    head = file.read(4)
    if len(head) < 4 or head[:3] != bytes((0, 0, 8)):
        raise ValueError(f"not an IDX file of bytes (it starts with {head.hex(' ') or 'nothing'})")
    if head[3] < 2:
        raise ValueError("expected rows, got one number for each row (perhaps labels)")
    sizes = np.frombuffer(file.read(4 * head[3]), ">u4")
    if len(sizes) != head[3]:
        raise ValueError("truncated header")
    return _Header(np.dtype(np.uint8), tuple(map(int, sizes)), 4 + 4 * head[3])
