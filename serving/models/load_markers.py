"""Marks on disk which versions are being loaded, so that a restarted server knows which crashed it.

Without markers, a version whose load crashes the server would crash it after each restart, before
any other version is loaded. Each load has a marker file, locked by its process. A marker without a
lock is from a process that died during that load.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from latentd.models.loads import LoadCancelled
from latentd.models.storage import Fingerprint

log = logging.getLogger(__name__)


def content_key(path: Path, content: Fingerprint) -> str:
    """Identifies the present content of the folder `path`, for names of files."""
    return hashlib.sha256(repr((str(path.resolve()), content)).encode()).hexdigest()[:32]


class LoadMarkers:
    """The marker files in a folder. folder: as `state_folder` takes it."""

    def __init__(self, folder: str = "") -> None:
        self._folder = state_folder(folder)
        if self._folder is None:
            log.warning(
                "No state folder is writable: if loading a version crashes the server, a restarted "
                "server loads the same version first. Set --state."
            )

    @contextmanager
    def mark(self, key: str) -> Iterator[None]:
        """Keep a marker while the body loads a version. If the body succeeds or rejects the
        version, remove the markers of earlier crashes too."""
        with ExitStack() as locked:
            obsolete: list[Path] = []
            if self._folder is not None:
                path = self._folder / f"{key}.{os.getpid()}-{secrets.token_hex(4)}"
                try:
                    # Something may have removed the folder since the start.
                    self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                    file = locked.enter_context(path.open("w"))
                    fcntl.flock(file, fcntl.LOCK_EX)
                    obsolete = [path]
                except OSError as error:
                    log.warning("Cannot write a load marker (--state): %s.", error.strerror)
            try:
                yield
                obsolete += self._unlocked(key)
            except LoadCancelled:
                raise
            except Exception:
                obsolete += self._unlocked(key)
                raise
            finally:
                for marker in obsolete:
                    marker.unlink(missing_ok=True)

    def crashes(self, key: str) -> int:
        """How many processes died while they loaded this content."""
        return sum(1 for _ in self._unlocked(key))

    def _unlocked(self, key: str) -> Iterator[Path]:
        for path in self._folder.glob(f"{key}.*") if self._folder else ():
            with contextlib.suppress(OSError), path.open() as file:
                if not is_locked(file):
                    yield path


def is_locked(file: IO[str] | int) -> bool:
    """Whether another open file holds a lock on this one."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def state_folder(given: str) -> Path | None:
    """The folder for markers and trial results: `given`, or with "" the first usable default.
    None: it is not writable."""
    for folder in [Path(given)] if given else _default_folders():
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # A folder of another user is not trusted.
            if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK | os.X_OK):
                return folder
    return None


def _default_folders() -> Iterator[Path]:
    if given := os.environ.get("STATE_DIRECTORY"):  # systemd's
        yield Path(given.partition(":")[0])
    with contextlib.suppress(RuntimeError):  # a user without a home
        home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        yield Path(home) / "latentd"
    # In a container with a read-only root, a volume there outlives the server's process.
    yield Path(tempfile.gettempdir()) / f"latentd-state-{os.getuid()}"
