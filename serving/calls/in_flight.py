"""Keeps the calls that use a thing: it is released only after the last of them has ended."""

from __future__ import annotations

import threading
from collections.abc import Hashable

from latentd.calls.context import CallContext


class InFlight:
    """The calls that use one thing. Any thread may call any method.

    Each step of `add` and `remove` is atomic, so neither takes a lock: they run for every call.
    """

    def __init__(self) -> None:
        self._calls: set[Hashable] = set()
        self._closed = False
        self._drained = threading.Event()

    def acquire(self, context: CallContext) -> bool:
        """Keep the call until it has ended in any way. Returns False as `add` does."""
        if not self.add(context):
            return False
        context.on_done(self.remove)
        return True

    def add(self, call: Hashable) -> bool:
        """Keep the call until it is removed. Returns False after `drain`: the thing is closing."""
        if call in self._calls:
            return True  # its end removes it once
        self._calls.add(call)
        if self._closed:  # looked at last: `drain` either sees this call or is seen here
            self.remove(call)
            return False
        return True

    def remove(self, call: Hashable) -> None:
        """The call has ended, or never began."""
        self._calls.discard(call)
        if self._closed and not self._calls:
            self._drained.set()

    def drain(self, timeout: float | None = None) -> bool:
        """Accept no more calls, and wait until those in flight have ended; blocks.

        timeout: seconds; None: no limit. Returns False if calls are still in flight after it.
        """
        self._closed = True
        return not self._calls or self._drained.wait(timeout)
