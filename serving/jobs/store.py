"""The output folder: what is committed there, and how.

    <output>/
        plan.json, plan.names     what the job is
        plan.sums                 sha256 of what goes in, block by block
        shards/00000.parquet      results of one shard
        shards/_00000.json        its manifest: rows, quarantined rows, the sha256 of the file
        shards/.00000.<attempt>   being written, or left by a worker that was killed
        quarantine.jsonl          every quarantined row with its reason
        sheet.html, sheet.png     the worst reconstructions, for people
        _SUCCESS                  rows in = rows out + quarantined

A shard is written to a temporary file, its rows are counted, and it is fsynced and renamed. Then
its manifest is written in the same way, which commits the shard. Readers trust manifests and never
a listing. A kill at any point leaves a shard committed or not, and never half.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from latentd import atomic
from latentd.readers.rows import BadRow

SUCCESS: Final = "_SUCCESS"
QUARANTINE: Final = "quarantine.jsonl"
_SHARDS: Final = "shards"
_LOCKS: Final = ".locks"
_WHOLE_JOB: Final = 1 << 40  # this byte of .locks; byte i is shard i's


@dataclass(frozen=True)
class ShardManifest:
    """shards/_00000.json. Nothing in it differs between two runs."""

    plan: str  # digest
    shard: int
    start: int
    stop: int
    rows: int  # written; with the quarantined ones stop - start
    quarantined: list[BadRow]
    outside: int  # rows with values outside the range of the training data
    worst: list[tuple[int, float, int]]  # row, its error in nats, rows that have it; largest first
    bytes: int
    sha256: str


class Store:
    """One job's output folder. Locks belong to this process: one Store for each."""

    def __init__(self, folder: Path, plan: str = "", suffix: str = "") -> None:
        """plan: digest of the plan whose shards these are; suffix: of their files."""
        self.folder, self._plan, self._suffix = folder, plan, suffix
        self._shards = folder / _SHARDS
        self._shards.mkdir(parents=True, exist_ok=True)
        self._locks = os.open(folder / _LOCKS, os.O_RDWR | os.O_CREAT, 0o644)

    def close(self) -> None:
        """Closes the file of locks, and so releases all that this process holds."""
        os.close(self._locks)
        self._locks = -1

    def file(self, shard: int) -> Path:
        return self._shards / f"{shard:05d}{self._suffix}"

    def committed(self, shard: int, thorough: bool = False) -> ShardManifest | None:
        """The shard's manifest, if it is this plan's and its file is there, of its size and, when
        `thorough`, of its sha256."""
        try:
            raw = json.loads(self._manifest(shard).read_bytes())
            raw["quarantined"] = [BadRow(**row) for row in raw["quarantined"]]
            raw["worst"] = [(int(row), float(error), int(n)) for row, error, n in raw["worst"]]
            manifest = ShardManifest(**raw)
            size = self.file(shard).stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if (manifest.plan, manifest.shard, manifest.bytes) != (self._plan, shard, size):
            return None
        if thorough and _sha256(self.file(shard)) != manifest.sha256:
            return None
        return manifest

    def commit(
        self,
        shard: int,
        write: Callable[[BinaryIO], None],
        count: Callable[[Path], int],
        manifest: ShardManifest,
    ) -> ShardManifest:
        """Publish one shard; `manifest` is completed with the file's size and sha256."""
        for left in self._shards.glob(f".{shard:05d}.*"):
            left.unlink(missing_ok=True)  # a killed worker left it: this one has the lock
        # A manifest that exists now is not valid: a shard with a valid one is not committed again.
        self._manifest(shard).unlink(missing_ok=True)
        path = self.file(shard)
        with atomic.replacing(path) as temporary:
            with temporary.open("wb") as file:
                hashed = _Hashed(file)
                write(hashed)  # type: ignore[arg-type]
            if (rows := count(temporary)) != manifest.rows:
                lost = f"{rows} rows in the file after {manifest.rows} were written"
                raise OSError(errno.EIO, lost, str(path))
        manifest = dataclasses.replace(manifest, bytes=hashed.size, sha256=hashed.hexdigest())
        atomic.write(self._manifest(shard), to_json(dataclasses.asdict(manifest)))
        return manifest

    def publish(self, name: str, data: bytes) -> None:
        """Write one of the job's own files, whole or not at all."""
        atomic.write(self.folder / name, data)

    @contextlib.contextmanager
    def locked(self, shard: int | None, wait: bool) -> Iterator[bool]:
        """Hold a shard's lock, or with None the whole job's; gives whether it was to be had. The
        kernel takes it from a process that dies."""
        at = _WHOLE_JOB if shard is None else shard
        try:
            flags = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
            fcntl.lockf(self._locks, flags, 1, at)
        except (BlockingIOError, PermissionError):  # either, says POSIX
            yield False
            return
        try:
            yield True
        finally:
            if self._locks >= 0:  # else `close` has released it
                fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, at)

    def _manifest(self, shard: int) -> Path:
        return self._shards / f"_{shard:05d}.json"  # readers of Parquet folders skip "_"

    def sweep(self) -> None:
        """Remove what killed workers left; under the job's lock, with every shard committed."""
        for folder in (self.folder, self._shards):
            for left in folder.glob(".*.*"):
                left.unlink(missing_ok=True)


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


class _Hashed:
    """A file that is written once from its beginning, with the sha256 of what went in."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._sha256, self.size = file, hashlib.sha256(), 0
        self.closed = False

    def write(self, data: Any) -> int:
        self._sha256.update(data)
        self.size += memoryview(data).nbytes
        return self._file.write(data)

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._file.flush()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Whoever opened the file closes it, after its fsync."""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
