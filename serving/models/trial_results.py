"""Shares the results of trials among the workers of one server, so that one worker tries a version.

The workers share a folder with a file for each version. The worker that holds the file's lock runs
the trial and writes the result; the others wait for the lock and read it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

from latentd.errors import BundleError
from latentd.models import load_markers
from latentd.models.profile import ModelProfile

_POLL_SECONDS: Final = 0.05
_PREFIX: Final = "trials-"


@dataclass(frozen=True, slots=True)
class TrialResult:
    """The outcome for a bundle that can serve."""

    digest: str
    profile: ModelProfile


@contextmanager
def shared_folder(state: str) -> Iterator[Path | None]:
    """A folder for the results of one server, inside the state folder; removed at the end.

    None: there is no state folder, and each worker runs its own trials. Folders of killed servers
    are removed: theirs have no lock.
    """
    parent = load_markers.state_folder(state)
    if parent is None:
        yield None
        return
    for old in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # locked: its server runs
            descriptor = _lock(old, fcntl.LOCK_NB)
            shutil.rmtree(old, ignore_errors=True)
            os.close(descriptor)
    folder, descriptor = _create(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _create(parent: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor that holds its lock.

    Another server that starts now may remove it before it is locked; then a second one is made.
    """
    while True:
        folder = Path(mkdtemp(prefix=_PREFIX, dir=parent))
        with suppress(FileNotFoundError):
            descriptor = _lock(folder)
            if folder.exists():
                return folder, descriptor
            os.close(descriptor)


def _lock(folder: Path, flags: int = 0) -> int:
    """Lock a folder until the descriptor is closed. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class TrialResults:
    """The results in `folder`. None: the server has one process, and nothing is shared."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get(
        self,
        key: str,
        run_trial: Callable[[], TrialResult],
        on_wait: Callable[[], None],
    ) -> TrialResult:
        """The result for the content `key`: another worker's, or what `run_trial` returns.

        on_wait: called every 50 ms while another worker runs the trial; if it raises, the wait
        ends. Raises BundleError, also if another worker's trial raised it.
        """
        if self._folder is None:
            return run_trial()
        # Something may have removed the folder since the start.
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"{key}.json").open("a+") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    on_wait()
                    time.sleep(_POLL_SECONDS)
            file.seek(0)
            if text := file.read():
                raw = json.loads(text)
                if "rejected" in raw:
                    raise BundleError(raw["rejected"], raw["message"])
                return TrialResult(raw["digest"], ModelProfile.from_json(raw))
            try:
                result = run_trial()
            except BundleError as error:
                if error.reason != "memory":  # more memory may be available later
                    json.dump({"rejected": error.reason, "message": str(error)}, file)
                raise
            json.dump({"digest": result.digest, **result.profile.to_json()}, file)
            return result
