"""A sample stream that survives its server: where to go on, and whether to.

Knows no transport: the clients make the calls, this keeps count.
"""

from __future__ import annotations

from latentd.client.failures import ServiceError
from latentd.client.results import Samples
from latentd.client.retries import Backoff
from latentd.errors import LatentdError, Unavailable
from latentd.pb import vae_pb2 as pb


class ResumableSamples:
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
        return Unavailable(f"The stream ended {self.request.count} rows early.")
