"""Who still uses a thing: calls hold it until they end, and it can wait to be let go of."""

from __future__ import annotations

import threading

from latentd.calls.coroutines import CallContext


class InFlight:
    """The calls that hold one thing. Taken and let go of in any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._closed = False

    def take(self, caller: CallContext) -> bool:
        """Hold until the caller's call has ended; False: too late, the thing is going."""
        with self._changed:
            if self._closed:
                return False
            self._count += 1
        caller.on_done(self._release)
        return True

    def drain(self, patience: float | None = None) -> bool:
        """Let nobody take it any more and wait until nobody holds it; blocks.

        patience: seconds to wait at the most; None: as long as it takes. False: some hold it still.
        """
        with self._changed:
            self._closed = True
            return self._changed.wait_for(lambda: self._count == 0, patience)

    def _release(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()
