"""A sample stream that survives its server: where to go on, and whether to.

Knows no transport: the clients make the calls, this keeps count.
"""

from __future__ import annotations

import random
import time
from typing import Final

from serving.client.failures import ServiceError
from serving.client.results import Samples
from serving.errors import LatentdError, NotReady, Overloaded
from serving.pb import vae_pb2 as pb

FIRST_WAIT: Final = 0.2  # seconds; doubled with each failure in a row
LONGEST_WAIT: Final = 5.0  # seconds
PATIENCE: Final = 8  # failures in a row, about 12 seconds, before rows already won are given up


class Backoff:
    """How long to wait after a stream's failures, and when to give up."""

    def __init__(self, timeout: float | None, attempts: int) -> None:
        """timeout: seconds for the whole stream; None: no deadline. attempts: at its beginning;
        one that has begun is given PATIENCE, unless attempts is 1."""
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._attempts = attempts
        self._begun = False
        self._failures = 0  # in a row: any answer ends the row

    def remaining(self) -> float | None:
        """Seconds until the deadline of the whole stream; None: no deadline."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def progress(self) -> None:
        """An answer has come."""
        self._begun, self._failures = True, 0

    def wait_after(self, error: LatentdError) -> float:
        """Seconds until the next attempt; raises `error` where there shall be none."""
        self._failures += 1
        begun = self._begun and self._attempts > 1
        if self._failures >= (PATIENCE if begun else self._attempts) or not isinstance(
            error, NotReady | Overloaded
        ):
            raise error
        longest = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (self._failures - 1))
        # Spread out: the streams of a server that went down should not come back in one wave.
        wait = random.uniform(longest / 2, longest)  # noqa: S311 (no secret)
        if isinstance(error, Overloaded):
            wait = max(wait, error.retry_after)
        remaining = self.remaining()
        if remaining is not None and wait >= remaining:
            raise error
        return wait


class SampleStream:
    """The rows of one StreamSamples call that are still missing.

    request: asks for just those; send it to begin, and again after each failure.
    """

    def __init__(
        self, request: pb.StreamSamplesRequest, timeout: float | None, attempts: int
    ) -> None:
        self.request = request
        self._backoff = Backoff(timeout, attempts)
        self._digest = ""

    @property
    def done(self) -> bool:
        """Whether every row has come."""
        return self.request.count == 0

    def remaining(self) -> float | None:
        """See Backoff."""
        return self._backoff.remaining()

    def accept(self, chunk: Samples) -> Samples:
        """Count `chunk` in and return it. Raises ServiceError where it is not the one due."""
        request = self.request
        if self._digest and chunk.served_by.digest != self._digest:
            raise ServiceError(
                "ABORTED",
                f"The model changed while it was streaming: row {chunk.offset} came from "
                f"{chunk.served_by}, the rows before from {self._digest[:15]}. Start again, "
                "with version= set.",
            )
        if (chunk.offset, chunk.seed) != (request.offset, request.seed) or not (
            1 <= len(chunk) <= request.count
        ):
            raise ServiceError(
                "DATA_LOSS",
                f"{len(chunk)} rows from {chunk.offset} on came with seed {chunk.seed}, where up "
                f"to {request.count} from {request.offset} on with seed {request.seed} were due.",
            )
        self._digest = chunk.served_by.digest
        # A newer version would give other rows for the same seed.
        request.model, request.version = chunk.served_by.model, chunk.served_by.version
        request.offset += len(chunk)
        request.count -= len(chunk)
        self._backoff.progress()
        return chunk

    def wait_after(self, error: LatentdError) -> float:
        """See Backoff."""
        return self._backoff.wait_after(error)

    def ended(self) -> LatentdError | None:
        """What is wrong with a stream that ended well: nothing, or rows that never came."""
        if self.done:
            return None
        return NotReady(f"The stream ended {self.request.count} rows early.")
