"""Open, stamp and hash files given by path or fsspec URL.

Every name with "://" is a URL. Local files do not need fsspec.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

from latentd.errors import BadData, ConfigError

FileOpener = Callable[[str], BinaryIO]
"""A function like open_file."""

_MACHINE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)
"""Errors of the machine, and not of a file."""


def is_remote(path: str) -> bool:
    return "://" in path


def open_file(path: str) -> BinaryIO:
    """Open a file; the result is seekable. Raises BadData if the file cannot be opened or is not a
    regular file, OSError for an error of the machine."""
    try:
        if not is_remote(path):
            return _open_regular(path)
        system, inside = remote_system(path)
        file: BinaryIO = system.open(inside, "rb")
        return file
    except (BadData, ConfigError, MemoryError):
        raise
    except Exception as error:  # a store's package can raise anything
        if is_machine_error(error):
            raise
        raise BadData(f"{printable(path)} cannot be opened: {describe(error)}.") from None


def _open_regular(path: str) -> BinaryIO:
    """Check the type before and after opening: opening a pipe without a writer would block, and
    opening a device may have effects."""
    is_regular = stat.S_ISREG(os.stat(path).st_mode)
    if is_regular:
        file = open(path, "rb", opener=_open_nonblocking)  # noqa: SIM115 (the caller closes it)
        is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        if is_regular:
            return file
        file.close()
    raise BadData(
        f"{printable(path)} is not a regular file: pipes, sockets and devices are not read."
    )


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def size_and_stamp(path: str) -> tuple[int, str]:
    """The size in bytes, and a stamp that changes with the file. The stamp has its times, inode and
    size, because the modification time alone can be set back; or a remote store's key."""
    try:
        if not is_remote(path):
            status = Path(path).stat()
            parts = status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size
            return status.st_size, "-".join(map(str, parts))
        system, inside = remote_system(path)
        size = int(system.size(inside))
        return size, f"{system.ukey(inside)}-{size}"
    except OSError as error:
        raise BadData(f"Cannot stat {printable(path)}: {describe(error)}.") from None


def sha256(path: str) -> bytes:
    """The digest of the file's bytes; reads it in blocks."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]


def join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def printable(name: str) -> str:
    r"""A name that any file and terminal accepts: bytes that are not UTF-8 become \xe9."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that is not from a file system
        return name.encode("utf-8", "backslashreplace").decode()


def describe(error: BaseException) -> str:
    """An exception's message, as the end of a sentence."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(text).rstrip(".") or type(error).__name__


def is_machine_error(error: BaseException) -> bool:
    """Whether an exception from reading a file is an error of the machine."""
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno in _MACHINE
    )


def remote_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path inside it. Raises ConfigError."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise ConfigError(f"{url} needs fsspec: pip install 'latentd[jobs]'.") from None
    try:
        system, inside = url_to_fs(url)
    except (ImportError, ValueError) as error:  # the store's own package, or an unknown scheme
        raise ConfigError(f"Cannot reach {url}: {error}.") from None
    return system, str(inside)
