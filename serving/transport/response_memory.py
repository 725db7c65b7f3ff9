"""The memory limit for responses that clients have not read yet.

gRPC keeps a response until the client's flow control takes it, and a client need never do so. A
thousand streams that are not read would hold a thousand responses as long as their connections
last. So the memory of unread responses is counted. Beyond the limit, the calls whose responses have
waited longest are ended: clients that read do not wait for clients that do not. grpc.aio (1.85)
cannot end a call from outside its handler; there, new responses are rejected instead.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Final

from latentd.errors import Overloaded
from latentd.metrics import Metrics

Drop = Callable[[], None]

DROPPED: Final = (
    "Response dropped: the client did not read it in time and server memory for unsent responses "
    "is full. Read faster, request fewer rows per call, or run fewer calls at once."
)

UNARY_COPIES: Final = 2
"""Copies of an unread message: Python's and gRPC's."""
STREAM_COPIES: Final = 4
"""The same two, the message they were serialized from, and the next one, made meanwhile."""

CALL_BYTES: Final = 32 << 10
"""Bytes that a call itself takes while its response waits. A million small responses would be
little data, but many gigabytes of calls."""

_HEALTH_BYTES: Final = 16
"""Only health's responses are at most so small; they are rejected last."""
_HEALTH_LIMIT_FACTOR: Final = 2
"""Health's responses are rejected only beyond the limit times this."""
_RETRY_AFTER: Final = 1.0  # seconds


class PendingResponses:
    """The responses that wait to be read. Thread-safe.

    max_bytes: of memory; a single response may take more
    """

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[int, tuple[int, Drop | None]] = {}  # the oldest first
        self._dropped = metrics.responses_dropped
        metrics.register_callback(metrics.unsent_response_bytes, lambda: self._bytes)

    def reserve(self, nbytes: int, drop: Drop | None) -> int:
        """Count a response and its call; returns a number to `release` them by.

        drop: ends the call at once. If memory is full, it is called for the responses that have
              waited longest. None: the call cannot be ended.
        Raises Overloaded if memory is full and `drop` is None.
        """
        number, lost = next(self._numbers), []
        factor = 1 if nbytes > _HEALTH_BYTES else _HEALTH_LIMIT_FACTOR
        nbytes += CALL_BYTES
        with self._lock:
            full = self._bytes + nbytes > self._max_bytes and bool(self._waiting)
            if full and drop is None and self._bytes + nbytes > factor * self._max_bytes:
                self._dropped.inc()
                raise Overloaded(
                    "responses",
                    f"{self._bytes >> 20} MiB of responses are waiting to be read by clients",
                    _RETRY_AFTER,
                )
            self._waiting[number] = nbytes, drop
            self._bytes += nbytes
            while full and drop and self._bytes > self._max_bytes and len(self._waiting) > 1:
                size, drop_oldest = self._waiting.pop(next(iter(self._waiting)))
                self._bytes -= size
                if drop_oldest is not None:
                    lost.append(drop_oldest)
        for drop_oldest in lost:
            self._dropped.inc()
            drop_oldest()
        return number

    def release(self, number: int) -> None:
        """The response has been read, or its call has ended."""
        with self._lock:
            size, _ = self._waiting.pop(number, (0, None))
            self._bytes -= size
