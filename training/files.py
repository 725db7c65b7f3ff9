"""Files that others wrote: only plain ones are read, and nothing larger than memory can hold."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from latentd.training import machine
from latentd.training.errors import TrainingError


def open_plain(path: Path) -> BinaryIO:
    """Open for reading, without ever waiting: a FIFO has no end, a device none or a side effect.

    Raises OSError for what cannot be opened or is not a plain file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    return os.fdopen(descriptor, "rb")


def require_memory(what: object, nbytes: int, advice: str) -> None:
    """Raise TrainingError if `nbytes`, as a file's header promises them, are more than half of the
    available memory. Half: rows are copied once, when they are split."""
    available = machine.memory()
    if nbytes > available // 2:
        raise TrainingError(
            f"{what} holds {machine.format_bytes(nbytes)} of values; at most half of the "
            f"available memory ({machine.format_bytes(available)}) may be used for them. {advice}"
        )


def printable(path: Path | str) -> str:
    """A path as text that can always be printed: bytes that are no UTF-8 become \\xNN."""
    return os.fsencode(path).decode(errors="backslashreplace")
