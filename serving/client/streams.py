"""Streams that survive the loss of a server: what is still missing, and the loops that request it.

The loops call again until nothing is missing: a lost or overloaded server costs a wait, and no row.
"""

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

from latentd.client import arguments, responses
from latentd.client.results import Samples, StreamedReconstruction
from latentd.client.retry import Backoff, ServiceError
from latentd.codec import Array
from latentd.errors import LatentdError, Unavailable
from latentd.pb import vae_pb2 as pb


class ResumableSamples:
    """The rows of one StreamSamples call that are still missing. Makes no calls itself.

    request: asks for these rows; send it first, and again after each failure.
    """

    def __init__(self, request: pb.StreamSamplesRequest) -> None:
        self.request = request
        self._digest = ""

    @property
    def done(self) -> bool:
        """Whether all rows were received."""
        return self.request.count == 0

    def accept(self, chunk: Samples) -> Samples:
        """Count the rows of `chunk` and return it. Raises ServiceError if another was expected."""
        request = self.request
        if self._digest and chunk.served_by.digest != self._digest:
            raise ServiceError(
                "ABORTED",
                f"The model changed during the stream: row {chunk.offset} is from "
                f"{chunk.served_by}, earlier rows are from {self._digest[:15]}. Restart the "
                "stream with version= set.",
            )
        if (chunk.offset, chunk.seed) != (request.offset, request.seed) or not (
            1 <= len(chunk) <= request.count
        ):
            raise ServiceError(
                "DATA_LOSS",
                f"Out-of-order response: expected row {request.offset} of seed {request.seed} and "
                f"up to {request.count} rows, got row {chunk.offset} of seed {chunk.seed} and "
                f"{len(chunk)} rows.",
            )
        self._digest = chunk.served_by.digest
        # A newer version would return different rows for the same seed.
        request.model, request.version = chunk.served_by.model, chunk.served_by.version
        request.offset += len(chunk)
        request.count -= len(chunk)
        return chunk

    def check_end(self) -> LatentdError | None:
        """The error of a stream that ended without one: None, or that rows are missing."""
        if self.done:
            return None
        return Unavailable(f"The stream ended {self.request.count} rows early.")


class PendingChunks:
    """The chunks of a reconstruction stream that wait for their response. Makes no calls itself.

    options:   the options that the stream's first message carries
    in_flight: maximum number of pending chunks
    fit:       of image files
    """

    def __init__(self, options: pb.StreamReconstructRequest, in_flight: int, fit: str = "") -> None:
        self._fit = fit
        self._options, self._offset, self._in_flight = options, options.offset, in_flight
        self._chunks: deque[pb.StreamReconstructRequest] = deque()
        self._exhausted = self._started = False

    @property
    def pending(self) -> bool:
        """Whether responses are missing, or more chunks may follow."""
        return bool(self._chunks) or not self._exhausted

    def replay(self) -> Iterator[pb.StreamReconstructRequest]:
        """The requests that a new stream must send first."""
        self._started = False
        for request in self._chunks:
            yield self._with_options(request)

    @property
    def has_capacity(self) -> bool:
        """Whether another chunk may be sent now."""
        return len(self._chunks) < self._in_flight and not self._exhausted

    def add(self, chunk: Array | None) -> pb.StreamReconstructRequest | None:
        """The request for the next chunk. None, for None: there are no more chunks."""
        if chunk is None:
            self._exhausted = True
            return None
        rows = arguments.rows(chunk, fit=self._fit)
        request = pb.StreamReconstructRequest(x=rows, offset=self._offset)
        self._offset += arguments.count(request.x)
        self._chunks.append(request)
        return self._with_options(request)

    def accept(self, response: pb.StreamReconstructResponse) -> StreamedReconstruction:
        """The result for the oldest chunk. Raises ServiceError if it belongs to another chunk."""
        result = responses.read_streamed_reconstruction(response)
        expected = self._chunks.popleft().offset if self._chunks else -1
        if result.offset != expected:
            raise ServiceError(
                "DATA_LOSS",
                f"Out-of-order response: expected row {expected}, got row {result.offset}.",
            )
        # A newer version would return different numbers.
        by = result.served_by
        self._options.model, self._options.version = by.model, by.version
        return result

    def _with_options(self, request: pb.StreamReconstructRequest) -> pb.StreamReconstructRequest:
        """The request, with the options if it is the first of its stream."""
        if self._started:
            return request
        self._started = True
        first = pb.StreamReconstructRequest()
        first.CopyFrom(self._options)
        first.x.CopyFrom(request.x)
        first.offset = request.offset
        return first


ToError = Callable[[grpc.RpcError], LatentdError]

_ENDED = "The stream ended before its last response."


def reconstruct_blocking(
    chunks: Iterable[Array],
    pending: PendingChunks,
    backoff: Backoff,
    start: Callable[[Iterator[Any], float | None], Any],
    to_error: ToError,
) -> Generator[StreamedReconstruction, None, None]:
    """start: starts the call with these requests and this deadline in seconds."""
    source = iter(chunks)
    while pending.pending:
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for request in pending.replay():
            requests.put(request)
        responses = start(iter(requests.get, None), backoff.remaining())
        try:
            while pending.pending:
                while pending.has_capacity:
                    added = pending.add(next(source, None))
                    if added is not None:
                        requests.put(added)
                if not pending.pending:
                    return
                response = next(responses)
                backoff.answered()
                yield pending.accept(response)
        except StopIteration:
            failure: LatentdError = Unavailable(_ENDED)
        except grpc.RpcError as error:
            failure = to_error(error)
        finally:
            requests.put(None)  # ends gRPC's thread that reads them
            responses.cancel()
        if pending.pending:
            time.sleep(backoff.wait_after(failure))


async def reconstruct_async(
    chunks: Iterable[Array] | AsyncIterable[Array],
    pending: PendingChunks,
    backoff: Backoff,
    start: Callable[[float | None], Any],
    to_error: ToError,
) -> AsyncGenerator[StreamedReconstruction, None]:
    """start: starts the call with this deadline in seconds; requests are written to it."""
    source = _each(chunks)
    while pending.pending:
        call = start(backoff.remaining())
        try:
            for request in pending.replay():
                await _write(call, request)
            while pending.pending:
                while pending.has_capacity:
                    added = pending.add(await anext(source, None))
                    if added is not None:
                        await _write(call, added)
                if not pending.pending:
                    return
                response = await call.read()
                if response is grpc.aio.EOF:
                    raise _Ended
                backoff.answered()
                yield pending.accept(response)
        except _Ended:
            failure: LatentdError = Unavailable(_ENDED)
        except grpc.RpcError as error:
            failure = to_error(error)
        finally:
            call.cancel()  # also if the caller stops iterating: the server stops too
        if pending.pending:
            await asyncio.sleep(backoff.wait_after(failure))


class _Ended(Exception):
    """The call ended, for a reason that gRPC does not report."""


async def _write(call: Any, request: Any) -> None:
    """Raises _Ended. If a call ends during a write, grpc.aio reports INTERNAL instead of the
    server's status. If the cause persists, reading from the next call reports it."""
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
