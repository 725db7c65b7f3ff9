"""The chunks of a reconstruction stream that were sent and not yet answered: what to send again.

Knows no transport: the client makes the calls, this keeps count.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from latentd.client import arguments, responses
from latentd.client.failures import ServiceError
from latentd.client.results import StreamedReconstruction
from latentd.codec import Array
from latentd.pb import vae_pb2 as pb


class PendingChunks:
    """What is left of a stream's chunks.

    options:   what the stream's first message says beside its rows
    in_flight: chunks that may wait for their answers
    """

    def __init__(self, options: pb.StreamReconstructRequest, in_flight: int) -> None:
        self._options, self._offset, self._in_flight = options, options.offset, in_flight
        self._waiting: deque[pb.StreamReconstructRequest] = deque()
        self._exhausted = self._begun = False

    @property
    def left(self) -> bool:
        """Whether answers are still to come, as far as is known."""
        return bool(self._waiting) or not self._exhausted

    def replay(self) -> Iterator[pb.StreamReconstructRequest]:
        """What a new stream must begin with."""
        self._begun = False
        for request in self._waiting:
            yield self._first(request)

    @property
    def room(self) -> bool:
        """Whether another chunk may be sent now."""
        return len(self._waiting) < self._in_flight and not self._exhausted

    def take(self, chunk: Array | None) -> pb.StreamReconstructRequest | None:
        """What to send for the next chunk; None: there are no more."""
        if chunk is None:
            self._exhausted = True
            return None
        request = pb.StreamReconstructRequest(x=arguments.rows(chunk), offset=self._offset)
        content = request.x.WhichOneof("content")
        files, shape = request.x.png.files, request.x.tensor.shape
        self._offset += len(files) if content == "png" else shape[0] if shape else 0
        self._waiting.append(request)
        return self._first(request)

    def accept(self, response: pb.StreamReconstructResponse) -> StreamedReconstruction:
        """The answer to the oldest chunk. Raises ServiceError where it is another's, or where
        another version answers than before."""
        answer = responses.streamed_reconstruction(response)
        due = self._waiting.popleft().offset if self._waiting else -1
        if answer.offset != due:
            raise ServiceError(
                "DATA_LOSS", f"The answer for row {answer.offset} came where row {due} was due."
            )
        # A newer version would give other numbers.
        by = answer.served_by
        self._options.model, self._options.version = by.model, by.version
        return answer

    def _first(self, request: pb.StreamReconstructRequest) -> pb.StreamReconstructRequest:
        """The request; with the options, if it is the stream's first."""
        if self._begun:
            return request
        self._begun = True
        first = pb.StreamReconstructRequest()
        first.CopyFrom(self._options)
        first.x.CopyFrom(request.x)
        first.offset = request.offset
        return first
