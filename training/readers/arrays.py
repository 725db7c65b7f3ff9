"""Arrays in files: .npy, .npz and IDX. Readers check the size in a header before they allocate an
array, so a small file cannot make them allocate a large one."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, NamedTuple

import numpy as np

from latentd.columns import Column
from latentd.training.array import Array
from latentd.training.errors import TrainingError
from latentd.training.files import open_plain, printable, require_memory

_HEADER_BYTES: Final = 1 << 16  # limit of a .npy header; numpy writes 128
_ZIP: Final = (b"PK\x03\x04", b"PK\x05\x06")  # first bytes of an archive, and of an empty one
_MEMORY_ADVICE: Final = "Use fewer or smaller rows, or a machine with more memory."


class Arrays(NamedTuple):
    """A source's content. x: (rows, *shape). y: one label for each row, or None."""

    x: Array
    y: Array | None = None
    x_test: Array | None = None  # the source's own test rows, if it has any
    y_test: Array | None = None
    classes: tuple[str, ...] = ()  # the name of each label, if labels have names
    notes: tuple[str, ...] = ()  # sentences for the user about the data
    permuted: bool = False  # whether the rows are in the order of the split
    text: bool = False  # whether the rows are texts: see latentd.texts
    columns: tuple[Column, ...] = ()  # of a table, not yet measured; x has NaN for missing values


def read_numpy(path: Path, key: str | None = None) -> Arrays:
    """Read a .npy of rows, or an .npz with one array, x (and y), or x_train, x_test (and y_...).

    key: the .npz's array to use as rows, without labels. Raises TrainingError.
    """
    try:
        with open_plain(path) as file:
            if file.read(4) in _ZIP:
                with zipfile.ZipFile(file) as archive:
                    return _from_archive(path, archive, key)
            if key is not None:
                raise TrainingError(f"{printable(path)} is not a .npz file; leave out ':{key}'.")
            file.seek(0)
            require_memory(printable(path), _declared_bytes(file), _MEMORY_ADVICE)
            file.seek(0)
            return Arrays(np.lib.format.read_array(file, allow_pickle=False))
    except FileNotFoundError:
        raise TrainingError(
            f"{printable(path)} does not exist; npz:FILE names a .npy or .npz file."
        ) from None
    except TrainingError:
        raise
    except Exception as error:  # a foreign file can make numpy raise anything
        advice = "write an array of numbers with numpy.save or numpy.savez"
        raise _fault(path, error, "a .npy or .npz file", advice) from None


def read_archive(path: Path) -> dict[str, Array]:
    """Every array of an .npz, by name. Raises TrainingError."""
    try:
        with open_plain(path) as file, zipfile.ZipFile(file) as archive:
            names = {name.removesuffix(".npy"): name for name in archive.namelist()}
            return _read_members(path, archive, names)
    except TrainingError:
        raise
    except Exception as error:  # as above
        advice = "write arrays of numbers with numpy.savez"
        raise _fault(path, error, "an .npz file", advice) from None


def _fault(path: Path, error: Exception, expected: str, advice: str) -> TrainingError:
    if isinstance(error, OSError):
        return TrainingError(f"{printable(path)} cannot be read: {error.strerror or error}.")
    objects = "Object arrays" in str(error)  # a pickle could run code
    what = "holds Python objects" if objects else f"is not {expected}, or is damaged"
    return TrainingError(f"{printable(path)} {what}; {advice}.")


def _from_archive(path: Path, archive: zipfile.ZipFile, key: str | None) -> Arrays:
    names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
    if key is not None:
        if key not in names:
            raise TrainingError(f"{printable(path)} has no array {key!r}; it holds {_join(names)}.")
        roles = {"x": key}
    elif len(names) == 1:
        roles = {"x": names[0]}
    elif "x" in names:
        roles = {"x": "x", "y": "y"}
    elif "x_train" in names:
        roles = {"x": "x_train", "y": "y_train", "x_test": "x_test", "y_test": "y_test"}
    else:
        raise TrainingError(
            f"{printable(path)} holds {_join(names)}; name the array of rows x, or x_train and "
            f"x_test, or choose one: npz:{printable(path)}:NAME."
        )
    members = {role: f"{name}.npy" for role, name in roles.items() if name in names}
    return Arrays(**_read_members(path, archive, members))


def _read_members(
    path: Path, archive: zipfile.ZipFile, members: Mapping[str, str]
) -> dict[str, Any]:
    """The archive's arrays under other names. members: name -> the file in the archive"""
    declared = 0
    for member in members.values():
        with archive.open(member) as file:
            declared += _declared_bytes(file)
    require_memory(printable(path), declared, _MEMORY_ADVICE)
    found = {}
    for name, member in members.items():
        with archive.open(member) as file:
            found[name] = np.lib.format.read_array(file, allow_pickle=False)
    return found


def _declared_bytes(file: IO[bytes]) -> int:
    """The array's size in bytes, from the .npy header at the start of `file`. Raises ValueError."""
    start = io.BytesIO(file.read(_HEADER_BYTES))
    version = np.lib.format.read_magic(start)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"version {version} of .npy holds no plain numbers")
    shape, _, dtype = read(start)
    if dtype.hasobject:
        raise ValueError("Object arrays")
    return math.prod(shape) * dtype.itemsize


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def read_idx(path: Path, dimensions: int) -> Array:
    """Read an IDX file of unsigned bytes, compressed if its name ends in .gz. Raises TrainingError.

    Format: http://yann.lecun.com/exdb/mnist/ (two zero bytes, type, dimensions, sizes, data).
    """
    name = printable(path)
    try:
        with ExitStack() as stack:
            file: BinaryIO = stack.enter_context(open_plain(path))
            if path.suffix == ".gz":
                file = stack.enter_context(gzip.GzipFile(fileobj=file))  # type: ignore[assignment]
            start = file.read(4 + 4 * dimensions)
            if start[:4] != bytes((0, 0, 8, dimensions)) or len(start) < 4 + 4 * dimensions:
                raise TrainingError(
                    f"{name} is not an IDX file of unsigned bytes in {dimensions} dimensions "
                    f"(it begins with {start[:4].hex(' ') or 'nothing'}); download it again."
                )
            shape = struct.unpack(f">{dimensions}I", start[4:])
            require_memory(name, math.prod(shape), _MEMORY_ADVICE)
            array = np.empty(shape, np.uint8)
            held = _fill(array, file)
            if held < array.size or file.read(1):
                more = f"{held:,}" if held < array.size else "more"
                raise TrainingError(
                    f"{name} promises {array.size:,} bytes of data and holds {more}; "
                    "download it again."
                )
            return array
    except (OSError, EOFError, zlib.error) as error:
        raise TrainingError(f"{name} cannot be read ({error}); download it again.") from None


def _fill(array: Array, file: BinaryIO) -> int:
    """Read the file into `array` until either ends. Returns the number of bytes read."""
    left = array.data.cast("B")
    while left and (count := file.readinto(left)):  # type: ignore[attr-defined]
        left = left[count:]
    return int(array.size - len(left))
