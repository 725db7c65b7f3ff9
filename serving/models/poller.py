"""Scans for new versions every few seconds, in a thread of its own.

It polls because notifications of a local disk (inotify) do not work on network volumes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Poller:
    """Calls `scan` every `seconds` seconds from `start` to `stop`. 0: never."""

    def __init__(self, scan: Callable[[], None], seconds: float) -> None:
        self._scan, self._seconds = scan, seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="poller", daemon=True)

    def start(self) -> None:
        """Scan for the first time after `seconds`."""
        if self._seconds:
            self._thread.start()

    def stop(self) -> None:
        """Start no more scans."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            try:
                self._scan()
            except Exception:  # a fault of this program; the next scan may succeed
                log.exception("Scanning for new versions failed.")
