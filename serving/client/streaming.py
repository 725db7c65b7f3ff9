"""A reconstruction stream from its first chunk to its last answer, blocking and awaited.

Each loop makes call after call until nothing is unanswered: a server that is lost or overloaded
costs a wait, and never a row.
"""

from __future__ import annotations

import asyncio
import queue
import time
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

from latentd.client.pending import PendingChunks
from latentd.client.results import StreamedReconstruction
from latentd.client.retries import Backoff
from latentd.codec import Array
from latentd.errors import LatentdError, Unavailable

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
