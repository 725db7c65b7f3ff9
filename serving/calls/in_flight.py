"""Counts the calls that use a thing: it is released only after the last of them has ended."""

from __future__ import annotations

import threading

from latentd.calls.context import CallContext


class InFlight:
    """The calls that use one thing. Any thread may call any method."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._closed = False

    def acquire(self, context: CallContext) -> bool:
        """Count the call until it has ended. Returns False after `drain`: the thing is closing."""
        with self._changed:
            if self._closed:
                return False
            self._count += 1
        context.on_done(self._release)
        return True

    def drain(self, timeout: float | None = None) -> bool:
        """Accept no more calls, and wait until those in flight have ended; blocks.

        timeout: seconds; None: no limit. Returns False if calls are still in flight after it.
        """
        with self._changed:
            self._closed = True
            return self._changed.wait_for(lambda: self._count == 0, timeout)

    def _release(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()
