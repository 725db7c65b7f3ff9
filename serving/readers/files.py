"""Files by path or by fsspec URL: found, opened, stamped, hashed.

A URL is whatever holds "://". Local files never touch fsspec.
"""

from __future__ import annotations

import glob
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from serving.errors import BadData, ConfigError


@dataclass(frozen=True, slots=True)
class Found:
    """One thing that --input names: a file, or a folder with the files below it.

    names: of a folder's files, relative to it, sorted; None: a file.
    """

    path: str
    names: list[str] | None = None


def find(pattern: str) -> list[Found]:
    """What a path, folder, glob or URL of them names. Raises ConfigError where that is nothing."""
    found = _find_remote(pattern) if is_remote(pattern) else _find_local(pattern)
    if not found or any(f.names == [] for f in found):
        raise ConfigError(f"--input {pattern}: there is no such file, or the folder is empty.")
    return found


def is_remote(path: str) -> bool:
    return "://" in path


def open_file(path: str) -> BinaryIO:
    """The file's bytes; seekable. Raises BadData where it cannot be opened."""
    try:
        if not is_remote(path):
            return Path(path).open("rb")
        system, inside = _system(path)
        file: BinaryIO = system.open(inside, "rb")
        return file
    except OSError as error:
        raise BadData(f"{path} cannot be opened: {error.strerror or error}.") from None


def size_and_stamp(path: str) -> tuple[int, str]:
    """Bytes, and what changes when the file does: its time, or what a remote store tells of it."""
    try:
        if not is_remote(path):
            status = Path(path).stat()
            return status.st_size, str(status.st_mtime_ns)
        system, inside = _system(path)
        return int(system.size(inside)), str(system.ukey(inside))
    except OSError as error:
        raise BadData(f"{path} cannot be looked at: {error.strerror or error}.") from None


def sha256(path: str) -> str:
    """Of the file's bytes, in hexadecimal; reads it in blocks."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def _find_local(pattern: str) -> list[Found]:
    path = Path(pattern)
    if path.is_dir():
        below = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
        return [Found(pattern, below)]
    if path.is_file():
        return [Found(pattern)]
    return [Found(p) for p in sorted(glob.glob(pattern, recursive=True)) if Path(p).is_file()]


def _find_remote(pattern: str) -> list[Found]:
    system, inside = _system(pattern)
    if glob.has_magic(inside):
        return [Found(str(system.unstrip_protocol(p))) for p in sorted(system.glob(inside))]
    if system.isdir(inside):
        prefix = inside.rstrip("/") + "/"
        return [Found(pattern, sorted(p.removeprefix(prefix) for p in system.find(inside)))]
    return [Found(pattern)] if system.exists(inside) else []


def _system(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise ConfigError(f"{url} needs fsspec: pip install 'latentd[jobs]'.") from None
    try:
        system, inside = url_to_fs(url)
    except (ImportError, ValueError) as error:  # the store's own package, or an unknown scheme
        raise ConfigError(f"{url} cannot be reached: {error}.") from None
    return system, str(inside)
