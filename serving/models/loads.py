"""Keeps the list of versions that are being loaded and runs each load in a thread of its own."""

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
"""A load that takes longer is slow: other loads may start while it runs."""
MAX_LOADS: Final = 4
"""Loads at a time, all but the last of them slow."""


class LoadCancelled(Exception):
    """The load was cancelled: its version is gone, or the server shuts down."""


@dataclass(eq=False)
class Load:
    """The load of one version, until the repository serves or rejects it."""

    model: str
    version: int
    path: Path
    content: Fingerprint  # of the version's folder when the load started
    key: str  # load_markers.content_key of path and content
    since: str = field(
        default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds")
    )  # UTC, ISO 8601
    slow: bool = False
    cancelled: bool = False

    def raise_if_cancelled(self) -> None:
        """Raises LoadCancelled after the load was cancelled."""
        if self.cancelled:
            raise LoadCancelled


class Loads:
    """The loads that run now.

    load: does the whole work of a load, in the load's thread.
    on_slow: called once when a load has become slow.
    """

    def __init__(
        self, load: Callable[[Load], None], on_slow: Callable[[Load], None], metrics: Metrics
    ) -> None:
        self._load, self._on_slow, self._gauge = load, on_slow, metrics.loading
        # Replaced, never changed: readers need no lock.
        self._current: dict[tuple[str, int], Load] = {}
        self._threads: list[threading.Thread] = []

    def current(self) -> list[Load]:
        """The loads that run, by model and version."""
        current = self._current
        return [current[key] for key in sorted(current)]

    def find(self, model: str, version: int) -> Load | None:
        """The load of this version, if one runs."""
        return self._current.get((model, version))

    def busy(self) -> bool:
        """Whether another load must wait."""
        current = self._current
        return len(current) >= MAX_LOADS or not all(load.slow for load in current.values())

    def start(self, load: Load) -> None:
        """Start the load's thread. Callers hold the repository's lock."""
        self._current = {**self._current, (load.model, load.version): load}
        self._gauge.set(len(self._current))
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        # Daemons: a graph that never ends must not keep the process from exiting.
        self._threads.append(threading.Thread(target=self._run, args=(load,), daemon=True))
        self._threads[-1].start()

    def finish(self, load: Load) -> None:
        """Remove a load that has ended. Callers hold the repository's lock."""
        self._current = {key: one for key, one in self._current.items() if one is not load}
        self._gauge.set(len(self._current))

    def cancel_others(self, model: str, versions: list[int]) -> None:
        """Cancel the loads of this model's versions, except `versions`."""
        for load in self._current.values():
            if load.model == model and load.version not in versions:
                load.cancelled = True

    def mark_slow(self, load: Load) -> None:
        """Let other loads start while this one runs."""
        load.slow = True
        self._on_slow(load)

    def join(self, seconds: float) -> bool:
        """Wait for the threads to end, at most `seconds` in total; returns whether they have."""
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self, load: Load) -> None:
        started = time.monotonic()
        timer = threading.Timer(SLOW_SECONDS, self._on_timer, (load,))
        timer.daemon = True
        timer.start()
        try:
            self._load(load)
        finally:
            timer.cancel()
            seconds = time.monotonic() - started
            log.debug("%s version %d: loading took %.1f s.", load.model, load.version, seconds)

    def _on_timer(self, load: Load) -> None:
        if self._current.get((load.model, load.version)) is load:
            log.warning(
                "%s version %d has been loading for %g s; loading other versions meanwhile.",
                *(load.model, load.version, SLOW_SECONDS),
            )
            self.mark_slow(load)
