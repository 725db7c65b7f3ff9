"""When to look for new versions: every so many seconds, in a thread of its own.

Polling, for what tells of changes on a local disk (inotify) tells nothing on a network volume.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Poller:
    """Calls `look` every `seconds` seconds from `start` to `stop`; 0: never."""

    def __init__(self, look: Callable[[], None], seconds: float) -> None:
        self._look, self._seconds = look, seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watcher", daemon=True)

    def start(self) -> None:
        """Look for the first time after `seconds`."""
        if self._seconds:
            self._thread.start()

    def stop(self) -> None:
        """Begin no more looks."""
        self._stopped.set()

    def _work(self) -> None:
        while not self._stopped.wait(self._seconds):
            try:
                self._look()
            except Exception:  # of our own making: the next look may do better
                log.exception("Looking for new versions failed.")
