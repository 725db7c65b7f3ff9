"""What trials found, shared by the workers of one server: a version is tried once, not by each."""

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
from tempfile import TemporaryDirectory
from typing import Final

from latentd.errors import BundleError
from latentd.models import attempts
from latentd.models.loading import Measurements

_POLL_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class TrialResult:
    """On a bundle that can be served."""

    digest: str
    measurements: Measurements


@contextmanager
def shared(state: str) -> Iterator[Path | None]:
    """A folder for the verdicts of one server, in the one for notes; None: there is none, and each
    worker finds out for itself. What servers that were killed have left there is removed."""
    folder = attempts.usable(state)
    if folder is None:
        yield None
        return
    for left in folder.glob("verdicts-*"):
        with suppress(OSError), _opened(left) as descriptor:
            if not attempts.is_locked(descriptor):
                shutil.rmtree(left)
    with (
        TemporaryDirectory(prefix="verdicts-", dir=folder, ignore_cleanup_errors=True) as made,
        _opened(Path(made)) as descriptor,
    ):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield Path(made)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class TrialResults:
    """Kept in a folder that lasts as long as the server. None: a server of one process, which
    shares nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get(
        self,
        key: str,
        find: Callable[[], TrialResult],
        wait: Callable[[], None],
    ) -> TrialResult:
        """The verdict on what `key` names: another worker's, else what `find` gives or raises.

        wait: called every 50 ms while another worker is at it; what it raises ends the wait. Raises
        BundleError as the worker did that found it.
        """
        if self._folder is None:
            return find()
        self._folder.mkdir(parents=True, exist_ok=True)  # if it was cleaned away
        with (self._folder / f"{key}.json").open("a+") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    wait()
                    time.sleep(_POLL_SECONDS)
            file.seek(0)
            if known := file.read():
                raw = json.loads(known)
                if "refused" in raw:
                    raise BundleError(raw["refused"], raw["what"])
                return TrialResult(raw["digest"], Measurements.from_json(raw))
            try:
                found = find()
            except BundleError as error:
                if error.reason != "memory":  # of which there may be more later
                    json.dump({"refused": error.reason, "what": str(error)}, file)
                raise
            json.dump({"digest": found.digest, **found.measurements.to_json()}, file)
            return found
