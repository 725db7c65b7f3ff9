"""Arrays in files, read by ranges of rows: .npy, .npz, IDX; .npy and IDX also with .gz.

Read and not mapped, so that memory is what the rows take, and remote files are as good as local
ones. A header is checked against the size of its file before anything is allocated: one that
promises more than the file can hold is refused.
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

from latentd.bundle import DataSpec
from latentd.errors import BadData, ConfigError
from latentd.readers import files, kinds
from latentd.readers.files import VersionLoader
from latentd.readers.rows import Array, Chunk, check_form, checked

MAX_WHOLE_BYTES: Final = 4 << 30
"""Of an array that must be held as a whole."""

_NPZ: Final = re.compile(r"(.+\.npz):(.+)", re.IGNORECASE)
_MOST_EXPANSION: Final = 1032
"""Bytes that deflate, which .gz and .npz use, makes of one byte at most."""


@dataclass(frozen=True, slots=True)
class _Header:
    """dtype and shape of the array, rows first; begin: where its data begins."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    columns_first: bool = False

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class ArrayFile:
    """One array in a file, opened. `path` may be FILE.npz:key.

    keys: the names to look for in an .npz without a key, in this order; else its only array.
    Raises BadData where the file holds no array of rows or less than its header promises,
    ConfigError where an .npz has no such key.
    """

    def __init__(
        self, path: str, keys: Sequence[str] = ("x",), open_file: VersionLoader = files.open_file
    ) -> None:
        self._path, self._held, self._open_file = path, ExitStack(), open_file
        self._whole: Array | None = None
        try:
            self._file, most, kind = self._unpacked(keys)
            self._header = _read_idx(self._file) if kind == "idx" else _read_npy(self._file)
            self._check_size(most)
            if self._header.columns_first:
                self._whole = self._read_columns()
        except (BadData, ConfigError):
            self.close()
            raise
        except Exception as error:  # the bytes of a foreign file can make numpy raise anything
            self.close()
            if files.of_the_machine(error):
                raise
            raise BadData(
                f"{files.printable(path)} cannot be read as an array: {files.said(error)}."
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
        """Rows start..stop. Raises BadData where the file is damaged there."""
        if self._whole is not None:
            return np.ascontiguousarray(self._whole[start:stop])
        header = self._header
        data = self._read_at(header.begin + start * header.row_bytes, stop - start)
        return np.frombuffer(data, header.dtype).reshape(-1, *header.shape[1:])

    def close(self) -> None:
        self._held.close()

    def _unpacked(self, keys: Sequence[str]) -> tuple[BinaryIO, int, str]:
        """The bytes of one array, whatever it is packed in; how many there can be; its kind."""
        path, key = file_and_key(self._path)
        kind = kinds.kind_of(path) or "idx"
        file = self._held.enter_context(self._open_file(path))
        size = file.seek(0, 2)
        file.seek(0)
        if kind == "npz":
            packed = self._held.enter_context(zipfile.ZipFile(file))
            member = packed.getinfo(_member(packed, path, key, keys))
            opened: Any = self._held.enter_context(packed.open(member))
            return opened, min(member.file_size, _MOST_EXPANSION * member.compress_size), kind
        if path.lower().endswith(".gz"):
            stream: Any = self._held.enter_context(gzip.GzipFile(fileobj=file))
            return stream, _MOST_EXPANSION * size, kind
        return file, size, kind

    def _check_size(self, most: int) -> None:
        header = self._header
        if self.nbytes > most - header.begin:
            raise BadData(
                f"{files.printable(self._path)} promises {header.shape[0]:,} rows of "
                f"{header.row_bytes:,} bytes, which the file cannot hold. Copy it again."
            )
        if not header.row_bytes:
            raise ValueError(f"its rows are empty (shape {list(header.shape)})")

    def _read_columns(self) -> Array:
        """An array in Fortran order, whose rows lie apart in the file."""
        header = self._header
        if self.nbytes > MAX_WHOLE_BYTES:
            raise ValueError("in Fortran order and large; save it with numpy.ascontiguousarray")
        data = self._read_at(header.begin, header.shape[0])
        return np.frombuffer(data, header.dtype).reshape(header.shape[::-1]).T

    def _read_at(self, begin: int, rows: int) -> bytes:
        path = files.printable(self._path)
        wanted = rows * self._header.row_bytes
        try:
            self._file.seek(begin)
            data = self._file.read(wanted)
        except BadData:
            raise
        except Exception as error:
            if files.of_the_machine(error):
                raise
            raise BadData(f"{path} is damaged ({files.said(error)}). Copy it again.") from None
        if len(data) != wanted:
            raise BadData(
                f"{path} promises {self.shape[0]:,} rows and ends before the last. Copy it again."
            )
        return data


class ArrayReader:
    """See rows.Reader. `path` may be FILE.npz:key."""

    def __init__(
        self, path: str, x: DataSpec, likelihood: str, open_file: VersionLoader = files.open_file
    ) -> None:
        self._x, self._likelihood = x, likelihood
        self._array = ArrayFile(path, open_file=open_file)
        try:
            check_form(self._array.dtype, self._array.shape[1:], x, files.printable(path))
        except ConfigError:
            self.close()
            raise
        self.rows = self._array.shape[0]

    def read(self, start: int, stop: int) -> Chunk:
        values = self._array.read(start, stop)
        ids = list(map(str, range(start, stop)))
        return checked(values, ids, start, self._x, self._likelihood)

    def close(self) -> None:
        self._array.close()


def file_and_key(path: str) -> tuple[str, str]:
    """The file that holds the array, and the key: FILE.npz and key of FILE.npz:key, else ""."""
    archive = _NPZ.fullmatch(path)
    return (archive[1], archive[2]) if archive else (path, "")


def _member(packed: zipfile.ZipFile, path: str, key: str, wanted: Sequence[str]) -> str:
    """The name of the array that is meant: `key`, the first of `wanted`, or the only one."""
    held = [name.removesuffix(".npy") for name in packed.namelist()]
    first = next((name for name in wanted if name in held), held[0] if len(held) == 1 else "")
    chosen = key or first
    if chosen not in held:
        raise ConfigError(
            f"{files.printable(path)} has no array named {chosen or ' or '.join(wanted)}. Name "
            f"one of its own: {files.printable(path)}:{' or '.join(held) or '(none)'}."
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
        raise ValueError("it holds Python objects; save an array of numbers")
    if not shape or min(shape) < 0:
        raise ValueError("a single number, where rows are due")
    return _Header(dtype, shape, file.tell(), columns_first and len(shape) > 1)


def _read_idx(file: BinaryIO) -> _Header:
    """Format: http://yann.lecun.com/exdb/mnist/ (two zero bytes, type, dimensions, sizes, data)."""
    head = file.read(4)
    if len(head) < 4 or head[:3] != bytes((0, 0, 8)):
        raise ValueError(f"no IDX file of bytes (it begins with {head.hex(' ') or 'nothing'})")
    if head[3] < 2:
        raise ValueError("it holds a number for each row, labels perhaps, where rows are due")
    sizes = np.frombuffer(file.read(4 * head[3]), ">u4")
    if len(sizes) != head[3]:
        raise ValueError("it ends within its header")
    return _Header(np.dtype(np.uint8), tuple(map(int, sizes)), 4 + 4 * head[3])
