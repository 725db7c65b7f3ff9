"""Answers on their way: what callers have not taken yet, and the bound on it.

gRPC keeps an answer until the caller's flow control lets it go, and a caller need never do so: a
thousand streams that nobody reads would hold a thousand answers for as long as their connection
lasts. So memory is counted while it waits, and where there is too much the callers that have let
their answers wait longest lose them: who reads need not wait for those who do not. Where a call
cannot be ended from outside, as in grpc.aio (1.85), new answers are refused instead.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Final

from latentd.errors import Overloaded
from latentd.metrics import Metrics

GiveUp = Callable[[], None]

GIVEN_UP: Final = (
    "The answer waited for its caller until its memory was needed for others. Read faster, ask for "
    "fewer rows a call, or have fewer calls under way."
)

UNARY: Final = 2
"""Copies of a message that waits: Python's and gRPC's."""
STREAMED: Final = 4
"""The same, the message it was made of, and the next one, which is made meanwhile."""

CALL: Final = 32 << 10
"""Bytes that a call takes besides, for as long as its answer waits: a million of small answers
would be a little of data, and many gigabytes of calls."""

_VITAL: Final = 16
"""Bytes of an answer that only health gives; it is refused last."""
_VITAL_SHARE: Final = 2
"""Where there is so many times what may wait, health's answers are refused as well."""
_RETRY_AFTER: Final = 1.0  # seconds


class PendingResponses:
    """The answers that wait for their callers; held and released in any thread.

    most_bytes: of memory; one answer alone may take more
    """

    def __init__(self, most_bytes: int, metrics: Metrics) -> None:
        self._most, self._bytes = most_bytes, 0
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[int, tuple[int, GiveUp | None]] = {}  # the oldest first
        self._given_up = metrics.responses_dropped
        metrics.register_callback(metrics.unsent_response_bytes, lambda: self._bytes)

    def hold(self, nbytes: int, give_up: GiveUp | None) -> int:
        """Count an answer in, and the call that waits with it; its number, to `release` it by.

        Where there is no room, calls `give_up` of those that have waited longest; it has to end
        the call, and at once. Raises Overloaded where this one came without: nothing is to be
        given up there.
        """
        number, lost = next(self._numbers), []
        most = self._most if nbytes > _VITAL else _VITAL_SHARE * self._most
        nbytes += CALL
        with self._lock:
            full = self._bytes + nbytes > self._most and bool(self._waiting)
            if full and give_up is None and self._bytes + nbytes > most:
                self._given_up.inc()
                raise Overloaded(
                    "answers",
                    f"Other callers have let {self._bytes >> 20} MiB of answers wait",
                    _RETRY_AFTER,
                )
            self._waiting[number] = nbytes, give_up
            self._bytes += nbytes
            while full and give_up and self._bytes > self._most and len(self._waiting) > 1:
                size, end = self._waiting.pop(next(iter(self._waiting)))
                self._bytes -= size
                if end is not None:
                    lost.append(end)
        for end in lost:
            self._given_up.inc()
            end()
        return number

    def release(self, number: int) -> None:
        """The answer has been taken, or nobody is left to take it."""
        with self._lock:
            size, _ = self._waiting.pop(number, (0, None))
            self._bytes -= size
