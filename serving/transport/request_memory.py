"""The memory limit for requests that have arrived only in part.

gRPC keeps the bytes of a message until the rest arrives, and a client need never send it. A
thousand calls that lack their last byte would hold a thousand messages as long as their connections
last. gRPC does not report how much that is, so the C heap is measured, where it keeps them. What
the heap has grown by since no request was overdue is an upper bound. Beyond the limit, the requests
that have been under way longest are dropped: clients that send do not wait for clients that do not.
What a new version takes while it loads is not counted. Anything else that grows meanwhile is, and
the dropped clients are told to retry.

Small requests, health's for example, need no token and arrive at once with their call. One that
does not is dropped after some seconds, when too many are awaited, or before all others when memory
is short: clients without a token take no place from clients with one.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from latentd.calls.coroutines import Future
from latentd.errors import Overloaded
from latentd.metrics import Metrics

log = logging.getLogger(__name__)

CHECK_SECONDS: Final = 0.1
"""From one check to the next. A request that arrives within this time is never dropped."""
MAX_SMALL: Final = 1024
"""Small requests that are awaited at a time."""
SMALL_CHECKS: Final = 50
"""A small request is dropped if it is not there after so many checks, or twice as many: 5 to 10
seconds."""
_SMALL_SHARE: Final = 4
"""Small requests are dropped beyond this fraction (1/4) of the limit for the others."""
_RETRY_AFTER: Final = 1.0  # seconds


class PartialRequests:
    """The messages that calls wait for. Thread-safe.

    max_bytes:  of memory, all together
    used_bytes: returns what the heap has in use now
    loads:      returns how many loads of a version have started or ended: odd during a load
    """

    def __init__(
        self,
        max_bytes: int,
        metrics: Metrics,
        used_bytes: Callable[[], int] | None = None,
        loads: Callable[[], int] = lambda: 0,
    ) -> None:
        self._max_bytes, self._dropped = max_bytes, metrics.partial_requests_dropped
        self._used_bytes = used_bytes or heap_bytes()
        self._baseline = self._used_bytes()  # when no request was overdue, or a version was loaded
        self._small_baseline = self._baseline  # the same for small requests
        self._loads, self._last_loads = loads, loads()
        self._numbers = itertools.count()
        self._overdue_below = 0  # numbers below it were awaited at the last check
        self._waiting: dict[int, Future[Any]] = {}  # the oldest first
        self._small: dict[int, Future[Any]] = {}  # likewise
        self._checks = self._expired_below = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="request-memory", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def begin(self, future: Future[Any], small: bool = False) -> int:
        """Await a message; returns a number to `complete` it by. If the message is dropped, the
        future fails with Overloaded."""
        number = next(self._numbers)
        if not small:
            self._waiting[number] = future
            return number
        self._small[number] = future
        if len(self._small) > MAX_SMALL:
            self._drop(next(iter(list(self._small))), f"{MAX_SMALL} other requests are pending")
        return number

    def complete(self, number: int) -> None:
        """The message has arrived in full, or its call has ended."""
        if self._waiting.pop(number, None) is None:
            self._small.pop(number, None)

    def enforce(self) -> None:
        """Check once. Drop the small requests whose time is over. Beyond the limit for small ones,
        drop all small ones that were awaited at the last check. Else, beyond the limit, drop the
        oldest of the others: at least half, and enough to leave half of the limit if all are of one
        size."""
        overdue = [number for number in list(self._waiting) if number < self._overdue_below]
        small_overdue = [number for number in list(self._small) if number < self._overdue_below]
        self._overdue_below = next(self._numbers)
        used, last_loads, self._last_loads = self._used_bytes(), self._last_loads, self._loads()
        self._drop_expired()
        loading = self._last_loads != last_loads or self._last_loads % 2
        if loading or not overdue:
            self._baseline = used
        if loading or not small_overdue:
            self._small_baseline = used
        if (grown := used - self._small_baseline) > self._max_bytes // _SMALL_SHARE:
            for number in small_overdue:
                self._drop(number, f"{grown >> 20} MiB of partial requests are pending")
        elif (grown := used - self._baseline) > self._max_bytes:
            share = 1 - self._max_bytes / (2 * grown)
            for number in overdue[: max(1, round(len(overdue) * share))]:
                self._drop(number, f"{grown >> 20} MiB of partial requests are pending")

    def _drop_expired(self) -> None:
        self._checks += 1
        if self._checks % SMALL_CHECKS == 0:
            for number in [number for number in list(self._small) if number < self._expired_below]:
                self._drop(number, "its time is over")
            self._expired_below = self._overdue_below

    def _drop(self, number: int, reason: str) -> None:
        future = self._waiting.pop(number, None) or self._small.pop(number, None)
        if future is None:
            return
        self._dropped.inc()
        what = f"Request not received completely in time; {reason}"
        future.set_exception(Overloaded("requests", what, _RETRY_AFTER))

    def _run(self) -> None:
        while not self._stopped.wait(CHECK_SECONDS):
            try:
                self.enforce()
            except Exception:  # a bug of this server: the next check may succeed
                log.exception("Measuring partial-request memory failed.")


class _Mallinfo2(ctypes.Structure):
    """The result of glibc's mallinfo2, from malloc.h."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def heap_bytes() -> Callable[[], int]:
    """A function that returns the bytes the C heap has in use; it takes microseconds. Without
    glibc's allocator it returns the resident memory, which shrinks late if ever."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return _resident
    mallinfo2.restype = _Mallinfo2

    def used() -> int:
        info = mallinfo2()
        return int(info.uordblks + info.hblkhd)  # in arenas; in mappings of their own

    return used


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
