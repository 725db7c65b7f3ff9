"""What was found and is not served, and why: told once, and not looked into again until changed.

Want of memory may be the moment's and not the version's: that is looked into again after a while.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from latentd.errors import LatentdError
from latentd.metrics import Metrics
from latentd.models.storage import Fingerprint

log = logging.getLogger(__name__)

MAX_REASON: Final = 1000
MEMORY_SECONDS: Final = 600.0
"""After so long a version that was refused for want of memory is tried again."""


@dataclass(frozen=True, slots=True)
class RejectedVersion:
    """A version that is not served, or not as it lies there now."""

    model: str  # empty: the root as a whole
    version: int  # 0: the model as a whole
    reason: str  # a sentence of at most MAX_REASON characters
    content: Fingerprint  # what was there when it was refused
    stands_until: float = math.inf  # seconds of the clock

    @property
    def name(self) -> str:
        """Of what is refused, for people."""
        if self.version:
            return f"{self.model} version {self.version}"
        return self.model or "the bundles' folder"


class RejectedVersions:
    """The refusals that stand. One thread at a time writes; any may read `standing`."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics, self._clock = metrics, clock
        self._standing: dict[tuple[str, int], RejectedVersion] = {}
        self._met: set[tuple[str, int]] = set()  # since the last sweep

    def standing(self) -> list[RejectedVersion]:
        """By model and version."""
        standing = self._standing
        return [standing[key] for key in sorted(standing)]

    def stands(
        self, model: str, version: int, content: Fingerprint, also_changed: bool = False
    ) -> bool:
        """Whether this very content was refused before, or with `also_changed` any."""
        refused = self._standing.get((model, version))
        if refused is None or not (also_changed or refused.content == content):
            return False
        if self._clock() >= refused.stands_until:
            return False
        self._met.add((model, version))
        return True

    def add(self, model: str, version: int, error: Exception, content: Fingerprint = ()) -> None:
        """Refuse; in the log and the metric only if it was not refused for this before."""
        key = (model, version)
        known = isinstance(error, LatentdError | OSError)
        passing = getattr(error, "reason", "") == "memory"
        until = self._clock() + MEMORY_SECONDS if passing else math.inf
        refused = RejectedVersion(model, version, _sentence(error), content, until)
        self._met.add(key)
        before = self._standing.get(key)
        self._standing = {**self._standing, key: refused}
        if before is None or (before.reason, before.content) != (refused.reason, content):
            self._metrics.reloads.labels("refused", getattr(error, "reason", "unreadable")).inc()
            trace = None if known else error
            log.error("Refused %s: %s", refused.name, refused.reason, exc_info=trace)

    def sweep(self) -> None:
        """Forget what was not met again since the last sweep: it is mended or gone."""
        self._standing = {key: r for key, r in self._standing.items() if key in self._met}
        self._met = set()


def _sentence(error: Exception) -> str:
    """Why, as a log and a protobuf string can hold it: short, and text whatever a file was called
    or a library says."""
    if isinstance(error, LatentdError):
        said = str(error)
    elif isinstance(error, OSError):
        said = f"It cannot be read: {error.strerror or type(error).__name__}."
    else:
        said = f"Loading it failed unexpectedly ({error!r}); the log has the traceback."
    said = said.encode(errors="backslashreplace").decode()
    return said if len(said) <= MAX_REASON else said[: MAX_REASON - 4] + " ..."
