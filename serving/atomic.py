"""Write a file or a folder whole or not at all: temporary name, fsync, rename, fsync of the parent.

Standard library only.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give the body a temporary path to write; rename it to `path` when the body ends.

    The body creates a file or a folder there. If the body raises, the temporary path is removed
    and `path` keeps what it had. A killed process leaves `.<stem>.<random><suffix>` next to it.

    durable: fsync before the rename, and fsync the parent after it. Of a folder only the list of
    its files is fsynced: the body must fsync the files. Raises OSError, which always has a
    filename: errors of writes have none of their own.
    """
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.rename(path)
        if durable:
            sync(path.parent)
    except BaseException as error:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)
        raise


def write(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace the file `path` with `data`. Raises OSError."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(data)


def sync(path: Path) -> None:
    """Flush a file's data, or a folder's list of names, to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
