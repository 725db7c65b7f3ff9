"""Which versions are being loaded, noted where a restart finds it.

A version whose load ends the server would end it again after each restart, before anything else
has been loaded. So each load leaves a file for as long as it lasts, locked by its process: one that
is there and not locked was left by a process that died in the midst of that load.
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

from latentd.models.loads import Cancelled
from latentd.models.storage import Fingerprint

log = logging.getLogger(__name__)


def key(path: Path, content: Fingerprint) -> str:
    """Names what lies in `path` now."""
    return hashlib.sha256(repr((str(path.resolve()), content)).encode()).hexdigest()[:32]


class Attempts:
    """Notes in `folder`; "": in the first of the usual places that can be written to."""

    def __init__(self, folder: str = "") -> None:
        self._folder = usable(folder)
        if self._folder is None:
            log.warning(
                "No folder for notes on loads can be written to (--state): a version that ends the "
                "server while it is loaded would be tried first again after a restart."
            )

    @contextmanager
    def note(self, key: str) -> Iterator[None]:
        """For as long as a load lasts. Once it has shown what becomes of the version, earlier ones
        that ended their processes are forgotten."""
        with ExitStack() as locked:
            forgotten: list[Path] = []
            if self._folder is not None:
                path = self._folder / f"{key}.{os.getpid()}-{secrets.token_hex(4)}"
                try:
                    self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # if it was cleaned
                    file = locked.enter_context(path.open("w"))
                    fcntl.flock(file, fcntl.LOCK_EX)
                    forgotten = [path]
                except OSError as error:
                    log.warning("A load cannot be noted (--state): %s.", error.strerror)
            try:
                yield
                forgotten += self._left(key)
            except Cancelled:
                raise
            except Exception:
                forgotten += self._left(key)
                raise
            finally:
                for note in forgotten:
                    note.unlink(missing_ok=True)

    def ended_in(self, key: str) -> int:
        """How many processes died in the midst of this load."""
        return sum(1 for _ in self._left(key))

    def _left(self, key: str) -> Iterator[Path]:
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


def _usual() -> Iterator[Path]:
    if given := os.environ.get("STATE_DIRECTORY"):  # systemd's
        yield Path(given.partition(":")[0])
    with contextlib.suppress(RuntimeError):  # a user without a home
        home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        yield Path(home) / "latentd"
    # In containers with a read-only root: a volume there outlives the server's process.
    yield Path(tempfile.gettempdir()) / f"latentd-state-{os.getuid()}"


def usable(given: str) -> Path | None:
    """The folder for notes: the one that is given, or else the first of the usual ones that can be
    written to; None: none can."""
    for folder in [Path(given)] if given else _usual():
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # What another user could write to is not trusted.
            if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK | os.X_OK):
                return folder
    return None
