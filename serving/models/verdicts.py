"""What trials found, shared by the workers of one server: a version is tried once, not by each."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from serving.errors import BundleError
from serving.models.loading import Measurements

_POLL_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Verdict:
    """On a bundle that can be served."""

    digest: str
    measurements: Measurements


class Verdicts:
    """Kept in a folder that lasts as long as the server. None: a server of one process, which
    shares nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get(
        self,
        key: str,
        find: Callable[[], Verdict],
        wait: Callable[[], None],
    ) -> Verdict:
        """The verdict on what `key` names: another worker's, else what `find` gives or raises.

        wait: called every 50 ms while another worker is at it; what it raises ends the wait. Raises
        BundleError as the worker did that found it.
        """
        if self._folder is None:
            return find()
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
                return Verdict(raw["digest"], Measurements.from_json(raw))
            try:
                found = find()
            except BundleError as error:
                if error.reason != "memory":  # of which there may be more later
                    json.dump({"refused": error.reason, "what": str(error)}, file)
                raise
            json.dump({"digest": found.digest, **found.measurements.to_json()}, file)
            return found
