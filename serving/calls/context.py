"""A call's context: its deadline, priority, credentials and statistics, and how it ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from latentd.calls.coroutines import Cancelled, Future
from latentd.calls.stats import CallStats


class CallContext:
    """One call's context.

    deadline:   seconds on time.monotonic's clock; math.inf: none
    background: the call lets others go first
    authorization: the header of that name; "": none
    scopes:     of its token; None: the server asks for no tokens
    header_bytes: size of all headers of the call together
    stats:      what the call costs
    cancelled:  the client has cancelled the call or disconnected
    """

    __slots__ = (
        "_on_done",
        "_pending",
        "authorization",
        "background",
        "cancelled",
        "deadline",
        "header_bytes",
        "scopes",
        "stats",
    )

    def __init__(self, deadline: float = math.inf, background: bool = False) -> None:
        self.deadline, self.background = deadline, background
        self.authorization = ""
        self.scopes: frozenset[str] | None = None
        self.stats = CallStats()
        self.header_bytes = 0
        self.cancelled = False
        self._pending: set[Future[Any]] = set()
        self._on_done: Callable[[CallContext], None] | None = None

    def on_cancel(self, future: Future[Any]) -> None:
        """Fail `future` with Cancelled when the call is cancelled or done; at once if it has been
        cancelled."""
        pending = self._pending  # changed in place: another thread may add to it meanwhile
        if pending:  # a stream makes any number of them, each with the rows it brought
            pending.difference_update([earlier for earlier in list(pending) if earlier.done()])
        self._pending.add(future)
        if self.cancelled:
            future.set_exception(Cancelled())

    def cancel(self) -> None:
        """The client has gone: cancel everything that the call waits for."""
        self.cancelled = True
        for future in list(self._pending):
            future.set_exception(Cancelled())

    def on_done(self, callback: Callable[[CallContext], None]) -> None:
        """Call `callback` with this context when the call has ended in any way. There is room for
        one callback."""
        self._on_done = callback

    def finish(self) -> None:
        """The call has ended: cancel what it still waits for, and run the callback. Idempotent."""
        pending, self._pending = self._pending, set()
        for future in list(pending):
            if not future.done():
                future.set_exception(Cancelled())
        callback, self._on_done = self._on_done, None
        if callback is not None:
            callback(self)
