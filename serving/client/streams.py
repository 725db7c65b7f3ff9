"""Streams that survive the loss of a server: what is missing, and the loops that ask for it."""

from __future__ import annotations

import asyncio
import queue
import time
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from typing import Any

import grpc
import grpc.aio

from latentd.client import arguments, results
from latentd.client.results import Samples, StreamedReconstruction
from latentd.client.retry import Backoff, ServiceError
from latentd.codec import Array
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
        answer = results.read_streamed_reconstruction(response)
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


Failure = Callable[[grpc.RpcError], LatentdError]

_ENDED = "The stream ended before its last answer."


def blocking(
    chunks: Iterable[Array],
    unanswered: PendingChunks,
    backoff: Backoff,
    start: Callable[[Iterator[Any], float | None], Any],
    failed: Failure,
) -> Generator[StreamedReconstruction, None, None]:
    """start: makes the call, given its requests and its deadline in seconds."""
    source = iter(chunks)
    while unanswered.left:
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for request in unanswered.replay():
            requests.put(request)
        responses = start(iter(requests.get, None), backoff.remaining())
        try:
            while unanswered.left:
                while unanswered.room:
                    more = unanswered.take(next(source, None))
                    if more is not None:
                        requests.put(more)
                if not unanswered.left:
                    return
                yield unanswered.accept(next(responses))
                backoff.progress()
        except StopIteration:
            failure: LatentdError = Unavailable(_ENDED)
        except grpc.RpcError as error:
            failure = failed(error)
        finally:
            requests.put(None)  # ends the thread of grpc's that reads them
            responses.cancel()
        if unanswered.left:
            time.sleep(backoff.wait_after(failure))


async def awaited(
    chunks: Iterable[Array] | AsyncIterable[Array],
    unanswered: PendingChunks,
    backoff: Backoff,
    start: Callable[[float | None], Any],
    failed: Failure,
) -> AsyncGenerator[StreamedReconstruction, None]:
    """start: makes the call, given its deadline in seconds; requests are written to it."""
    source = _each(chunks)
    while unanswered.left:
        call = start(backoff.remaining())
        try:
            for request in unanswered.replay():
                await _write(call, request)
            while unanswered.left:
                while unanswered.room:
                    more = unanswered.take(await anext(source, None))
                    if more is not None:
                        await _write(call, more)
                if not unanswered.left:
                    return
                response = await call.read()
                if response is grpc.aio.EOF:
                    raise _Ended
                yield unanswered.accept(response)
                backoff.progress()
        except _Ended:
            failure: LatentdError = Unavailable(_ENDED)
        except grpc.RpcError as error:
            failure = failed(error)
        finally:
            call.cancel()  # also when the caller stops iterating: the server stops too
        if unanswered.left:
            await asyncio.sleep(backoff.wait_after(failure))


class _Ended(Exception):
    """The call is over, and what ended it cannot be told."""


async def _write(call: Any, request: Any) -> None:
    """Raises _Ended: grpc.aio knows no other status for a call that ends while it is written to
    than INTERNAL, whatever the server said. A call that is made again tells it when it is read."""
    try:
        await call.write(request)
    except (asyncio.InvalidStateError, grpc.RpcError):
        raise _Ended from None


async def _each(chunks: Iterable[Array] | AsyncIterable[Array]) -> AsyncIterator[Array]:
    if isinstance(chunks, AsyncIterable):
        async for chunk in chunks:
            yield chunk
    else:
        for chunk in chunks:
            yield chunk
