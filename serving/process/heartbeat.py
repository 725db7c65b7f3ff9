"""Tells other threads whether a server process makes progress.

A gRPC health check of a stuck process gets no response. The metrics port has threads of its own:
they would respond all the same, so they ask the heartbeat.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from latentd.transport.listener import Listener

MAX_SILENT_SECONDS: Final = 5.0
"""As long as the manifests' probes wait for a response."""


class Heartbeat:
    """When the event loop and the listener's thread last made progress.

    listener: the one to follow; None: there is none yet.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.listener: Listener | None = None
        self._clock = clock
        self._loop_progress = self._listener_progress = clock()
        self._turns = 0

    def beat(self) -> None:
        """Look at the listener. The event loop calls this several times a second."""
        self._loop_progress = self._clock()
        turns = self.listener.turns if self.listener else 0
        if turns != self._turns or turns % 2 == 0:
            self._turns, self._listener_progress = turns, self._loop_progress

    def is_recent(self) -> bool:
        """Whether both made progress in the last MAX_SILENT_SECONDS."""
        last = min(self._loop_progress, self._listener_progress)
        return self._clock() - last < MAX_SILENT_SECONDS
