"""Files by path or by fsspec URL: opened, stamped, hashed.

A URL is whatever holds "://". Local files never touch fsspec.
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

VersionLoader = Callable[[str], BinaryIO]
"""As open_file."""

_MACHINE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)
"""Errors that are no file's own: the machine lacks something."""


def is_remote(path: str) -> bool:
    return "://" in path


def open_file(path: str) -> BinaryIO:
    """The file's bytes; seekable. Raises BadData where it cannot be opened or is no plain file,
    OSError where the machine is at fault."""
    try:
        if not is_remote(path):
            return _open_plain(path)
        system, inside = remote_system(path)
        file: BinaryIO = system.open(inside, "rb")
        return file
    except (BadData, ConfigError, MemoryError):
        raise
    except Exception as error:  # a store's own package can raise anything
        if of_the_machine(error):
            raise
        raise BadData(f"{printable(path)} cannot be opened: {said(error)}.") from None


def _open_plain(path: str) -> BinaryIO:
    """A pipe without a writer would wait for ever, and a device may act on being opened: what the
    name stands for is looked at before, and again once it is open."""
    plain = stat.S_ISREG(os.stat(path).st_mode)
    if plain:
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 (the caller closes it)
        plain = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        if plain:
            return file
        file.close()
    raise BadData(f"{printable(path)} is no plain file: pipes, sockets and devices are not read.")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def size_and_stamp(path: str) -> tuple[int, str]:
    """Bytes, and what changes when the file does: its times, its inode and its size, for the time
    of modification alone can be set back; or what a remote store tells of it."""
    try:
        if not is_remote(path):
            status = Path(path).stat()
            parts = status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size
            return status.st_size, "-".join(map(str, parts))
        system, inside = remote_system(path)
        size = int(system.size(inside))
        return size, f"{system.ukey(inside)}-{size}"
    except OSError as error:
        raise BadData(f"{printable(path)} cannot be looked at: {said(error)}.") from None


def sha256(path: str) -> bytes:
    """The digest of the file's bytes; reads it in blocks."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]


def join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def printable(name: str) -> str:
    r"""A name as text that every file and terminal takes: bytes that are not UTF-8 become \xe9."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that no file system made
        return name.encode("utf-8", "backslashreplace").decode()


def said(error: BaseException) -> str:
    """What an exception of a library says, as the end of a sentence."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(text).rstrip(".") or type(error).__name__


def of_the_machine(error: BaseException) -> bool:
    """Whether an exception on reading a file says nothing of that file."""
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
        raise ConfigError(f"{url} cannot be reached: {error}.") from None
    return system, str(inside)
