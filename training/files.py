"""Foreign files: only plain files are read, and only if their content fits into memory."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from latentd.training import machine
from latentd.training.errors import TrainingError


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file for reading, without blocking. A FIFO has no end. A device may have no end
    or a side effect.

    Raises OSError if `path` cannot be opened or is not a plain file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    return os.fdopen(descriptor, "rb")


def read_plain(path: Path, expected: str) -> bytes:
    """The content of a plain file. expected: what --data names, said if the file is missing.

    Raises TrainingError.
    """
    try:
        with open_plain(path) as file:
            return file.read()
    except FileNotFoundError:
        raise TrainingError(f"{printable(path)} does not exist; {expected}.") from None
    except OSError as error:
        raise TrainingError(f"{printable(path)} cannot be read: {error.strerror}.") from None


def require_memory(what: object, nbytes: int, advice: str) -> None:
    """Raise TrainingError if `nbytes`, as declared in a file's header, exceed half of the available
    memory. The limit is half because the split copies the rows once."""
    available = machine.available_memory()
    if nbytes > available // 2:
        raise TrainingError(
            f"{what} holds {machine.format_bytes(nbytes)} of values; at most half of the "
            f"available memory ({machine.format_bytes(available)}) may be used for them. {advice}"
        )


def printable(path: Path | str) -> str:
    """A path as printable text: bytes that are not UTF-8 become \\xNN."""
    return os.fsencode(path).decode(errors="backslashreplace")
