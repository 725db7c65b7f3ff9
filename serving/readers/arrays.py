"""Arrays in files, read by ranges of rows: .npy, .npz, IDX; the last also with .gz.

Read and not mapped, so that memory is what the rows take, and remote files are as good as local
ones.
"""

from __future__ import annotations

import gzip
import math
import re
import zipfile
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np

from serving.bundle import XSpec
from serving.errors import BadData, ConfigError
from serving.readers import files
from serving.readers.rows import Array, Chunk, check_form, checked

_NPZ: Final = re.compile(r"(.+\.npz)(?::(.+))?")
_DAMAGED: Final = (EOFError, OSError, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file whose header has been read. shape: rows first; begin: where the data does; file: the
    array's own bytes, in what `held` closes."""

    held: ExitStack
    file: BinaryIO
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int


class ArrayReader:
    """See rows.Reader. `path` may be FILE.npz:key."""

    def __init__(self, path: str, x: XSpec) -> None:
        self._path, self._x = path, x
        self._opened = _open(path)
        try:
            check_form(self._opened.dtype, self._opened.shape[1:], x, path)
        except ConfigError:
            self.close()
            raise

    @property
    def rows(self) -> int:
        return self._opened.shape[0]

    def read(self, start: int, stop: int) -> Chunk:
        opened = self._opened
        row_bytes = math.prod(opened.shape[1:]) * opened.dtype.itemsize
        try:
            opened.file.seek(opened.begin + start * row_bytes)
            data = opened.file.read((stop - start) * row_bytes)
        except _DAMAGED as error:
            raise BadData(f"{self._path} is damaged ({error}). Copy it again.") from None
        if len(data) != (stop - start) * row_bytes:
            raise BadData(
                f"{self._path} promises {self.rows:,} rows and ends before row {stop:,}. "
                "Copy it again."
            )
        values: Array = np.frombuffer(data, opened.dtype).reshape(-1, *opened.shape[1:])
        return checked(values, list(map(str, range(start, stop))), start, self._x)

    def close(self) -> None:
        self._opened.held.close()


def _open(path: str) -> _Opened:
    held = ExitStack()
    try:
        file, is_npy = _unpacked(path, held)
        dtype, shape, begin = _read_npy(file) if is_npy else _read_idx(file)
        return _Opened(held, file, dtype, shape, begin)
    except (ValueError, *_DAMAGED) as error:
        held.close()
        raise BadData(f"{path} cannot be read as an array: {error}.") from None
    except BaseException:
        held.close()
        raise


def _unpacked(path: str, held: ExitStack) -> tuple[BinaryIO, bool]:
    """The bytes of one array, whatever it is packed in; and whether they are numpy's."""
    archive = _NPZ.fullmatch(path)
    file = held.enter_context(files.open_file(archive[1] if archive else path))
    if archive:
        packed = held.enter_context(zipfile.ZipFile(file))
        member: Any = held.enter_context(packed.open(_member(packed, archive[1], archive[2])))
        return member, True
    if path.endswith(".gz"):
        stream: Any = held.enter_context(gzip.GzipFile(fileobj=file))
        return stream, path.endswith(".npy.gz")
    return file, path.endswith(".npy")


def file_of(path: str) -> str:
    """The file that holds the array: FILE.npz of FILE.npz:key."""
    archive = _NPZ.fullmatch(path)
    return archive[1] if archive else path


def _member(packed: zipfile.ZipFile, path: str, key: str | None) -> str:
    """The name of the array that is meant: `key`, x, or the only one."""
    keys = [name.removesuffix(".npy") for name in packed.namelist()]
    chosen = key or ("x" if "x" in keys else keys[0] if len(keys) == 1 else "")
    if chosen not in keys:
        raise ConfigError(
            f"{path} has no array named {chosen or 'x'}. Name one of its own: "
            f"{path}:{' or '.join(keys) or '(none)'}."
        )
    return f"{chosen}.npy"


_Header = tuple[np.dtype[Any], tuple[int, ...], int]


def _read_npy(file: BinaryIO) -> _Header:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, columns_first, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, columns_first, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError("a structured array")
    if columns_first and len(shape) > 1:
        raise ValueError("in Fortran order; save it with numpy.ascontiguousarray")
    if dtype.hasobject or not shape:
        raise ValueError("no array of rows of numbers")
    return dtype, shape, file.tell()


def _read_idx(file: BinaryIO) -> _Header:
    """Format: http://yann.lecun.com/exdb/mnist/ (two zero bytes, type, dimensions, sizes, data)."""
    head = file.read(4)
    if len(head) < 4 or head[:3] != bytes((0, 0, 8)) or head[3] < 2:
        raise ValueError(f"no IDX file of bytes (it begins with {head.hex(' ') or 'nothing'})")
    sizes = np.frombuffer(file.read(4 * head[3]), ">u4")
    if len(sizes) != head[3]:
        raise ValueError("it ends within its header")
    return np.dtype(np.uint8), tuple(map(int, sizes)), 4 + 4 * head[3]
