"""What is being tried or loaded now, each version in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from latentd.metrics import Metrics
from latentd.models.storage import Fingerprint

log = logging.getLogger(__name__)

SLOW_SECONDS: Final = 5.0
"""After so long a load is said to be slow, and others may begin beside it."""
MOST: Final = 4
"""Loads at a time, all but the last of them slow."""


class Cancelled(Exception):
    """The load is not wanted any more: its version is gone, or the server stops."""


@dataclass(eq=False)
class Load:
    """A version on its way to being served or refused."""

    model: str
    version: int
    path: Path
    content: Fingerprint  # what lay in its folder when the load began
    key: str  # of both
    since: str = field(
        default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds")
    )  # UTC, ISO 8601
    slow: bool = False
    wanted: bool = True  # else its trial is given up

    def go_on(self) -> None:
        """Raises Cancelled when the load is not wanted any more."""
        if not self.wanted:
            raise Cancelled


class Loads:
    """The loads under way.

    work: a load's whole work, in its thread. on_slow: called once when it has become slow.
    """

    def __init__(
        self, work: Callable[[Load], None], on_slow: Callable[[Load], None], metrics: Metrics
    ) -> None:
        self._work, self._on_slow, self._gauge = work, on_slow, metrics.loading
        # Replaced and never changed, so that those who read it need no lock.
        self._standing: dict[tuple[str, int], Load] = {}
        self._threads: list[threading.Thread] = []

    def standing(self) -> list[Load]:
        """By model and version."""
        standing = self._standing
        return [standing[key] for key in sorted(standing)]

    def find(self, model: str, version: int) -> Load | None:
        """The load of this version, if there is one."""
        return self._standing.get((model, version))

    def busy(self) -> bool:
        """Whether no further load may begin now."""
        standing = self._standing
        return len(standing) >= MOST or not all(load.slow for load in standing.values())

    def begin(self, load: Load) -> None:
        """Start its thread. One caller at a time."""
        self._standing = {**self._standing, (load.model, load.version): load}
        self._gauge.set(len(self._standing))
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        # Daemons: a graph that never ends must not keep the process from ending.
        self._threads.append(threading.Thread(target=self._run, args=(load,), daemon=True))
        self._threads[-1].start()

    def end(self, load: Load) -> None:
        """It is served or refused. One caller at a time."""
        self._standing = {key: one for key, one in self._standing.items() if one is not load}
        self._gauge.set(len(self._standing))

    def keep(self, model: str, versions: list[int]) -> None:
        """Give up the trials of other versions of this model."""
        for load in self._standing.values():
            if load.model == model and load.version not in versions:
                load.wanted = False

    def let_others_pass(self, load: Load) -> None:
        """Take the load for a slow one from now on."""
        load.slow = True
        self._on_slow(load)

    def join(self, seconds: float) -> bool:
        """Wait so long, all in all, for the threads to end; whether they have."""
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self, load: Load) -> None:
        began = time.monotonic()
        timer = threading.Timer(SLOW_SECONDS, self._is_slow, (load,))
        timer.daemon = True
        timer.start()
        try:
            self._work(load)
        finally:
            timer.cancel()
            log.debug("%s version %d: %.1f s.", load.model, load.version, time.monotonic() - began)

    def _is_slow(self, load: Load) -> None:
        if self._standing.get((load.model, load.version)) is load:
            log.warning(
                "%s version %d has been loading for %g s: other versions are loaded beside it.",
                *(load.model, load.version, SLOW_SECONDS),
            )
            self.let_others_pass(load)
