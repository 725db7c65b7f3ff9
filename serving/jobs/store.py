"""The output folder: its files, and how they are committed.

    <output>/
        plan.json, plan.names     the plan of the job
        plan.sums                 sha256 of the inputs, for each block
        plan.sizes                size of each row of the inputs with several sizes
        shards/00000.parquet      results of one shard
        shards/_00000.json        its manifest: rows, quarantined rows, the sha256 of the file
        shards/.00000.<random>    being written, or left by a killed worker
        quarantine.jsonl          every quarantined row with its reason
        sheet.html, sheet.png     contact sheet of the worst reconstructions
        _SUCCESS                  all rows are written or quarantined

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
_WHOLE_JOB: Final = 1 << 40  # byte of .locks for the job's lock; byte i is for shard i


@dataclass(frozen=True)
class ShardManifest:
    """shards/_00000.json. Two runs write the same bytes."""

    plan: str  # digest
    shard: int
    start: int
    stop: int
    rows: int  # written; rows + quarantined = stop - start
    quarantined: list[BadRow]
    rows_outside_range: int  # rows with values outside the range of the training data
    outliers: int  # rows whose reconstruction error exceeds the threshold
    worst: list[
        tuple[int, float, int]
    ]  # row, its error in nats per value, number of rows with this error; largest first
    bytes: int
    sha256: str


class Store:
    """One job's output folder. Locks belong to the process, so each process needs one Store."""

    def __init__(self, folder: Path, plan: str = "", suffix: str = "") -> None:
        """plan: digest of the plan of the shards; suffix: of the shards' files."""
        self.folder, self._plan, self._suffix = folder, plan, suffix
        self._shards = folder / _SHARDS
        self._shards.mkdir(parents=True, exist_ok=True)
        self._locks = os.open(folder / _LOCKS, os.O_RDWR | os.O_CREAT, 0o644)

    def close(self) -> None:
        """Close the lock file, which releases all locks of this process."""
        os.close(self._locks)
        self._locks = -1

    def file(self, shard: int) -> Path:
        return self._shards / f"{shard:05d}{self._suffix}"

    def committed(self, shard: int, thorough: bool = False) -> ShardManifest | None:
        """The shard's manifest, if it belongs to this plan and matches its file in size and, with
        `thorough`, in sha256; else None."""
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
        """Commit one shard; requires its lock. Returns `manifest` with the file's size and sha256.

        write: writes the file; count: counts the rows of a written file. Raises OSError.
        """
        for leftover in self._shards.glob(f".{shard:05d}.*"):
            leftover.unlink(missing_ok=True)  # a killed worker left it: this one has the lock
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
        """Write one of the job's own files atomically."""
        atomic.write(self.folder / name, data)

    @contextlib.contextmanager
    def locked(self, shard: int | None, wait: bool) -> Iterator[bool]:
        """Hold a shard's lock, or with None the job's. Yields False if another process holds it and
        `wait` is False. The kernel releases the lock of a process that dies."""
        position = _WHOLE_JOB if shard is None else shard
        try:
            flags = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
            fcntl.lockf(self._locks, flags, 1, position)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            yield False
            return
        try:
            yield True
        finally:
            if self._locks >= 0:  # else `close` has released it
                fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, position)

    def _manifest(self, shard: int) -> Path:
        return self._shards / f"_{shard:05d}.json"  # readers of Parquet folders skip "_"

    def sweep(self) -> None:
        """Remove the files of killed workers. Requires the job's lock and all shards committed."""
        for folder in (self.folder, self._shards):
            for leftover in folder.glob(".*.*"):
                leftover.unlink(missing_ok=True)


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


class _Hashed:
    """A file that is written sequentially; computes the sha256 of what is written."""

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
        """Does nothing: the caller closes the file."""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
