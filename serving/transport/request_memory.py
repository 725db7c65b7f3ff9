"""Requests on their way: what has come of messages that are not whole, and the bound on it.

gRPC keeps what has come of a message until the rest is there, and a caller need never send it: a
thousand calls that lack their last byte would hold a thousand messages for as long as their
connection lasts. gRPC tells nobody how much that is. So the C heap is looked at, where it keeps
them: what it has grown by since no request was long in coming is theirs at the most. Beyond the
bound those that have been on their way longest are given up: who sends need not wait for those who
do not. What a new version takes is not counted against them; what else may have grown meanwhile is,
and they are told to come back.

Small requests, Health's for one, need no token and come at once with their call. Those that do not
are given up after seconds, beyond a number at once, and before all others where there is too much:
a caller without a token costs no caller with one its place.
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

LOOK_SECONDS: Final = 0.1
"""From one look to the next: a request that comes within it is never given up."""
MOST_SMALL: Final = 1024
"""Small requests that are waited for at a time."""
SMALL_LOOKS: Final = 50
"""A small request that is not there after so many looks, or twice as many, is given up: 5 to 10
seconds."""
_SMALL_SHARE: Final = 4
"""Small requests are given up once there is this part of what others may take."""
_RETRY_AFTER: Final = 1.0  # seconds


class PartialRequests:
    """The messages that calls wait for; expected and taken in any thread.

    most_bytes: of memory that they may take together
    used_bytes: what the heap has in use now
    loads:      how often the loading of a version has begun or ended: odd while one is loaded
    """

    def __init__(
        self,
        most_bytes: int,
        metrics: Metrics,
        used_bytes: Callable[[], int] | None = None,
        loads: Callable[[], int] = lambda: 0,
    ) -> None:
        self._most, self._given_up = most_bytes, metrics.partial_requests_dropped
        self._used = used_bytes or heap()
        self._calm = self._used()  # while no request was long in coming, or a version was loaded
        self._calm_small = self._calm  # the same of small ones
        self._loads, self._loaded = loads, loads()
        self._numbers = itertools.count()
        self._seen = 0  # numbers below it were there at the last look
        self._waiting: dict[int, Future[Any]] = {}  # the oldest first
        self._small: dict[int, Future[Any]] = {}  # likewise
        self._looks = self._small_seen = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="arrivals", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def expect(self, reply: Future[Any], small: bool = False) -> int:
        """Count a message in that is to resolve `reply`; its number, for `came`. The reply fails
        with Overloaded if the message is given up."""
        number = next(self._numbers)
        if not small:
            self._waiting[number] = reply
            return number
        self._small[number] = reply
        if len(self._small) > MOST_SMALL:
            self._give_up(next(iter(list(self._small))), f"{MOST_SMALL} others are awaited")
        return number

    def came(self, number: int) -> None:
        """The message is whole, or nobody is left to send it."""
        if self._waiting.pop(number, None) is None:
            self._small.pop(number, None)

    def look(self) -> None:
        """Give up the small ones that have had their time; and, if there is too much, all other
        small ones that were here at the last look, or else the oldest of the rest: at least half of
        them, and as many as leave half of the bound, were all alike."""
        late = [number for number in list(self._waiting) if number < self._seen]
        late_small = [number for number in list(self._small) if number < self._seen]
        self._seen = next(self._numbers)
        used, before, self._loaded = self._used(), self._loaded, self._loads()
        self._give_up_overdue()
        loads = self._loaded != before or self._loaded % 2
        if loads or not late:
            self._calm = used
        if loads or not late_small:
            self._calm_small = used
        if (grown := used - self._calm_small) > self._most // _SMALL_SHARE:
            for number in late_small:
                self._give_up(number, f"{grown >> 20} MiB of such are here")
        elif (grown := used - self._calm) > self._most:
            for number in late[: max(1, round(len(late) * (1 - self._most / (2 * grown))))]:
                self._give_up(number, f"{grown >> 20} MiB of such are here")

    def _give_up_overdue(self) -> None:
        self._looks += 1
        if self._looks % SMALL_LOOKS == 0:
            for number in [number for number in list(self._small) if number < self._small_seen]:
                self._give_up(number, "it has had its time")
            self._small_seen = self._seen

    def _give_up(self, number: int, why: str) -> None:
        reply = self._waiting.pop(number, None) or self._small.pop(number, None)
        if reply is None:
            return
        self._given_up.inc()
        what = f"This request was long in coming, and {why}"
        reply.set_exception(Overloaded("requests", what, _RETRY_AFTER))

    def _work(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            try:
                self.look()
            except Exception:  # of our own making: the next look may do better
                log.exception("Looking at what requests take failed.")


class _Mallinfo2(ctypes.Structure):
    """What glibc's mallinfo2 gives, malloc.h."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def heap() -> Callable[[], int]:
    """What tells the bytes that the C heap has in use, in microseconds. Where glibc is not the
    allocator: the memory that is resident, which shrinks late if ever."""
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
