"""The two clients, blocking and asyncio. The methods of both are built from `calls`."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Mapping,
)
from types import TracebackType
from typing import Any, Concatenate, NamedTuple, ParamSpec, Self, TypeAlias, TypeVar

import grpc
import grpc.aio

from latentd.client import calls, streams
from latentd.client.base import BaseClient
from latentd.client.call import Call, ChunkedCall
from latentd.client.channel import methods
from latentd.client.results import Samples, StreamedReconstruction
from latentd.client.streams import ResumableSamples
from latentd.codec import Array

T = TypeVar("T")

SampleChunks: TypeAlias = Generator[Samples, None, None]
AsyncSampleChunks: TypeAlias = AsyncGenerator[Samples, None]
Reconstructions: TypeAlias = Generator[StreamedReconstruction, None, None]
AsyncReconstructions: TypeAlias = AsyncGenerator[StreamedReconstruction, None]

P = ParamSpec("P")


def _blocking(build: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._call(build(*args, **kwargs))

    return _documented(method, build)


def _iterating(
    build: Callable[P, Call[Samples]],
) -> Callable[Concatenate[Client, P], SampleChunks]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> SampleChunks:
        return self._stream(build(*args, **kwargs))

    return _documented(method, build)


def _awaiting(
    build: Callable[P, Call[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return self._call(build(*args, **kwargs))

    return _documented(method, build)


def _async_iterating(
    build: Callable[P, Call[Samples]],
) -> Callable[Concatenate[AsyncClient, P], AsyncSampleChunks]:
    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncSampleChunks:
        return self._stream(build(*args, **kwargs))

    return _documented(method, build)


def _iterating_chunks(
    build: Callable[P, ChunkedCall[Iterable[Array]]],
) -> Callable[Concatenate[Client, P], Reconstructions]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Reconstructions:
        return self._stream_chunks(build(*args, **kwargs))

    return _documented(method, build)


def _async_iterating_chunks(
    build: Callable[P, ChunkedCall[Iterable[Array] | AsyncIterable[Array]]],
) -> Callable[Concatenate[AsyncClient, P], AsyncReconstructions]:
    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncReconstructions:
        return self._stream_chunks(build(*args, **kwargs))

    return _documented(method, build)


M = TypeVar("M", bound=Callable[..., Any])


def _documented(method: M, build: Callable[..., Any]) -> M:
    """`method` with the name, docstring and arguments of `build`, for help()."""
    functools.update_wrapper(method, build)
    signature = inspect.signature(build)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    vars(method)["__signature__"] = signature.replace(
        parameters=[itself, *signature.parameters.values()],
        return_annotation=inspect.Signature.empty,
    )
    return method


class Client(BaseClient):
    """Calls that block. Threads may share one client; do not use it across a fork."""

    get_model = _blocking(calls.get_model)
    list_models = _blocking(calls.list_models)
    get_map = _blocking(calls.get_map)
    encode = _blocking(calls.encode)
    decode = _blocking(calls.decode)
    sample = _blocking(calls.sample)
    stream_samples = _iterating(calls.stream_samples)
    reconstruct = _blocking(calls.reconstruct)
    stream_reconstruct = _iterating_chunks(calls.stream_reconstruct)
    interpolate = _blocking(calls.interpolate)
    score = _blocking(calls.score)
    health = _blocking(calls.health)

    def _open(self) -> None:
        self._channel = self._connection.open(grpc)
        self._opened = methods(self._channel)

    @property
    def _methods(self) -> Mapping[str, Callable[..., Any]]:
        return self._opened

    def close(self) -> None:
        """Cancel calls in flight and disconnect."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, call: Call[T]) -> T:
        self._prepare(call)
        backoff = self._backoff(self._seconds(call))
        while True:
            try:
                response = self._send(call, backoff.remaining())
            except grpc.RpcError as error:
                time.sleep(backoff.wait_after(self._to_error(error)))
            else:
                backoff.answered()
                return self._read(call, response)

    def _stream(self, call: Call[Samples]) -> SampleChunks:
        self._prepare(call)
        backoff = self._backoff(self._seconds(call))
        missing = ResumableSamples(call.request)
        while not missing.done:
            responses = self._send(call, backoff.remaining())
            try:
                for response in responses:
                    backoff.answered()
                    yield missing.accept(call.read(response))
                failure = missing.check_end()
            except grpc.RpcError as error:
                failure = self._to_error(error)
            finally:
                responses.cancel()  # also if the caller stops iterating: the server stops too
            if failure is not None and not missing.done:
                time.sleep(backoff.wait_after(failure))

    def _stream_chunks(self, call: ChunkedCall[Iterable[Array]]) -> Reconstructions:
        return streams.reconstruct_blocking(
            call.chunks,
            self._pending_chunks(call),
            self._backoff(call.timeout, patient=self._connection.background),
            lambda requests, seconds: self._methods["StreamReconstruct"](
                requests, timeout=seconds, metadata=self._metadata
            ),
            self._to_error,
        )


class _Opened(NamedTuple):
    """A channel and the callable of each RPC on it."""

    channel: grpc.aio.Channel
    methods: Mapping[str, Callable[..., Any]]


class AsyncClient(BaseClient):
    """The same calls, awaited. Create it anywhere, also at module level: each event loop has a
    channel of its own, which the loop's first call opens."""

    get_model = _awaiting(calls.get_model)
    list_models = _awaiting(calls.list_models)
    get_map = _awaiting(calls.get_map)
    encode = _awaiting(calls.encode)
    decode = _awaiting(calls.decode)
    sample = _awaiting(calls.sample)
    stream_samples = _async_iterating(calls.stream_samples)
    reconstruct = _awaiting(calls.reconstruct)
    stream_reconstruct = _async_iterating_chunks(calls.stream_reconstruct)
    interpolate = _awaiting(calls.interpolate)
    score = _awaiting(calls.score)
    health = _awaiting(calls.health)

    def _open(self) -> None:
        self._channels: dict[asyncio.AbstractEventLoop, _Opened] = {}

    @property
    def _methods(self) -> Mapping[str, Callable[..., Any]]:
        loop = asyncio.get_running_loop()
        if loop not in self._channels:
            for ended in [other for other in self._channels if other.is_closed()]:
                del self._channels[ended]
            channel = self._connection.open(grpc.aio)
            self._channels[loop] = _Opened(channel, methods(channel))
        return self._channels[loop].methods

    async def close(self) -> None:
        """Cancel this event loop's calls in flight and disconnect; a later call reconnects."""
        opened = self._channels.pop(asyncio.get_running_loop(), None)
        if opened is not None:
            await opened.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _call(self, call: Call[T]) -> T:
        self._prepare(call)
        backoff = self._backoff(self._seconds(call))
        while True:
            pending = self._send(call, backoff.remaining())
            try:
                response = await pending
            except grpc.RpcError as error:
                await asyncio.sleep(backoff.wait_after(self._to_error(error)))
            else:
                backoff.answered()
                return self._read(call, response)
            finally:
                pending.cancel()  # if this task was cancelled, the server stops too

    async def _stream(self, call: Call[Samples]) -> AsyncSampleChunks:
        self._prepare(call)
        backoff = self._backoff(self._seconds(call))
        missing = ResumableSamples(call.request)
        while not missing.done:
            responses = self._send(call, backoff.remaining())
            try:
                async for response in responses:
                    backoff.answered()
                    yield missing.accept(call.read(response))
                failure = missing.check_end()
            except grpc.RpcError as error:
                failure = self._to_error(error)
            finally:
                responses.cancel()  # also if the caller stops iterating: the server stops too
            if failure is not None and not missing.done:
                await asyncio.sleep(backoff.wait_after(failure))

    def _stream_chunks(
        self, call: ChunkedCall[Iterable[Array] | AsyncIterable[Array]]
    ) -> AsyncReconstructions:
        return streams.reconstruct_async(
            call.chunks,
            self._pending_chunks(call),
            self._backoff(call.timeout, patient=self._connection.background),
            lambda seconds: self._methods["StreamReconstruct"](
                timeout=seconds, metadata=self._metadata
            ),
            self._to_error,
        )
