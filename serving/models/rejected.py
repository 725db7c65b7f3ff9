"""Keeps which versions the server rejected and why, so that each content is tried and logged once.

A version rejected for lack of memory is retried after a while: more may be available then.
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
MEMORY_RETRY_SECONDS: Final = 600.0
"""After this time a version that was rejected for lack of memory is retried."""


@dataclass(frozen=True, slots=True)
class RejectedVersion:
    """A version that is not served with its present content."""

    model: str  # empty: the whole bundle directory
    version: int  # 0: the whole model
    reason: str  # a sentence of at most MAX_REASON characters
    content: Fingerprint  # of its folder when it was rejected
    retry_at: float = math.inf  # seconds of the clock

    @property
    def name(self) -> str:
        """What was rejected, for people."""
        if self.version:
            return f"{self.model} version {self.version}"
        return self.model or "the bundle directory"


class RejectedVersions:
    """The rejections in force. One thread at a time writes; any thread may call `current`."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics, self._clock = metrics, clock
        self._current: dict[tuple[str, int], RejectedVersion] = {}
        self._seen: set[tuple[str, int]] = set()  # since the last `prune`

    def current(self) -> list[RejectedVersion]:
        """The rejections in force, by model and version."""
        current = self._current
        return [current[key] for key in sorted(current)]

    def is_known(
        self, model: str, version: int, content: Fingerprint, also_changed: bool = False
    ) -> bool:
        """Whether this content was rejected before; with `also_changed`, whether any was."""
        rejected = self._current.get((model, version))
        if rejected is None or not (also_changed or rejected.content == content):
            return False
        if self._clock() >= rejected.retry_at:
            return False
        self._seen.add((model, version))
        return True

    def add(self, model: str, version: int, error: Exception, content: Fingerprint = ()) -> None:
        """Reject; logged and counted unless the same content was rejected for the same reason."""
        key = (model, version)
        label = getattr(error, "reason", "unreadable")
        retry_at = self._clock() + MEMORY_RETRY_SECONDS if label == "memory" else math.inf
        rejected = RejectedVersion(model, version, _sentence(error), content, retry_at)
        self._seen.add(key)
        previous = self._current.get(key)
        self._current = {**self._current, key: rejected}
        if previous is None or (previous.reason, previous.content) != (rejected.reason, content):
            self._metrics.reloads.labels("rejected", label).inc()
            trace = None if isinstance(error, LatentdError | OSError) else error
            log.error("Rejected %s: %s", rejected.name, rejected.reason, exc_info=trace)

    def prune(self) -> None:
        """Remove what was not seen since the last `prune`: it was fixed or deleted."""
        self._current = {key: one for key, one in self._current.items() if key in self._seen}
        self._seen = set()


def _sentence(error: Exception) -> str:
    """The reason as a log and a protobuf string can hold it: short, and valid UTF-8 whatever the
    error's text is."""
    if isinstance(error, LatentdError):
        text = str(error)
    elif isinstance(error, OSError):
        text = f"It cannot be read: {error.strerror or type(error).__name__}."
    else:
        text = f"Unexpected error while loading ({error!r}). See the traceback in the server log."
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 4] + " ..."
