"""Whether a call that failed is tried again, and when.

Knows no transport: the clients make the calls, this keeps count.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Final

from latentd.errors import LatentdError, Overloaded, Unavailable

FIRST_WAIT: Final = 0.2  # seconds; doubled with each failure in a row
LONGEST_WAIT: Final = 5.0  # seconds
PATIENCE: Final = 8  # failures in a row, about 12 seconds, before rows already won are given up

MOST_TOKENS: Final = 200
TOKENS_PER_SUCCESS: Final = 0.2
"""Each failure costs a token, each success earns a fifth; under half: no retries, which would only
add to the load of servers that are all failing. The half is as many calls as may be under way at
one server when it goes, and still be tried elsewhere."""


class Throttle:
    """gRPC's throttling of retries (its proposal A6), for those that gRPC leaves to us."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: float = MOST_TOKENS

    def failed(self) -> bool:
        """Count a failure; whether it may be followed by another attempt."""
        with self._lock:
            self._tokens = max(self._tokens - 1, 0)
            return self._tokens > MOST_TOKENS / 2

    def succeeded(self) -> None:
        """Count a success."""
        with self._lock:
            self._tokens = min(self._tokens + TOKENS_PER_SUCCESS, MOST_TOKENS)


class Backoff:
    """How long to wait after a call's failures, and when to give up."""

    def __init__(self, timeout: float | None, attempts: int, patient: bool = False) -> None:
        """timeout: seconds for all attempts; None: no deadline. attempts: at a call, or at a
        stream's beginning; one that has begun is given PATIENCE, unless attempts is 1. patient: an
        overloaded server, which says when to come back, is come back to until the deadline."""
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._attempts, self._patient = attempts, patient
        self._begun = False
        self._failures = 0  # in a row: any answer ends the row

    def remaining(self) -> float | None:
        """Seconds until the deadline of all attempts; None: no deadline."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def progress(self) -> None:
        """An answer of a stream has come."""
        self._begun, self._failures = True, 0

    def wait_after(self, error: LatentdError) -> float:
        """Seconds until the next attempt; raises `error` where there shall be none."""
        self._failures += 1
        most = PATIENCE if self._begun and self._attempts > 1 else self._attempts
        waits = self._patient and self._attempts > 1 and isinstance(error, Overloaded)
        if not (waits or (self._failures < most and isinstance(error, Unavailable | Overloaded))):
            raise error
        longest = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (self._failures - 1))
        # Spread out: the callers of a server that went down should not come back in one wave.
        wait = random.uniform(longest / 2, longest)  # noqa: S311 (no secret)
        if isinstance(error, Overloaded):
            wait = max(wait, error.retry_after)
        remaining = self.remaining()
        if remaining is not None and wait >= remaining:
            raise error
        return wait
