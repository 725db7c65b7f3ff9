"""The two clients, blocking and asyncio: one set of methods, all made from `calls`."""

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

from latentd.client import calls, streaming
from latentd.client.base import BaseClient
from latentd.client.calls import Call, ChunkedCall
from latentd.client.connection import methods
from latentd.client.results import Samples, StreamedReconstruction
from latentd.client.retries import Backoff
from latentd.codec import Array

SampleChunks: TypeAlias = Generator[Samples, None, None]
AsyncSampleChunks: TypeAlias = AsyncGenerator[Samples, None]
Reconstructions: TypeAlias = Generator[StreamedReconstruction, None, None]
AsyncReconstructions: TypeAlias = AsyncGenerator[StreamedReconstruction, None]

P = ParamSpec("P")
T = TypeVar("T")


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
    """Calls that block. Safe to share between threads; not to be used across a fork."""

    get_model = _blocking(calls.get_model)
    list_models = _blocking(calls.list_models)
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
        """Cancel what is under way and disconnect."""
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
        calls.address(call.request, self._model, self._version)
        backoff = self._backoff(call)
        while True:
            try:
                response = self._send(call, backoff.remaining())
            except grpc.RpcError as error:
                time.sleep(self._wait_after(error, backoff))
            else:
                self._throttle.succeeded()
                return call.read(response)

    def _stream(self, call: Call[Samples]) -> SampleChunks:
        calls.address(call.request, self._model, self._version)
        missing = self._missing(call)
        while not missing.done:
            responses = self._send(call, missing.remaining())
            try:
                for response in responses:
                    yield missing.accept(call.read(response))
                failure = missing.ended()
            except grpc.RpcError as error:
                failure = self._failure(error)
            finally:
                responses.cancel()  # also when the caller stops iterating: the server stops too
            if failure is not None and not missing.done:
                time.sleep(missing.wait_after(failure))

    def _stream_chunks(self, call: ChunkedCall[Iterable[Array]]) -> Reconstructions:
        return streaming.blocking(
            call.chunks,
            self._unanswered(call),
            Backoff(call.timeout, self._connection.attempts, self._connection.background),
            lambda requests, seconds: self._methods["StreamReconstruct"](
                requests, timeout=seconds, metadata=self._metadata
            ),
            self._failure,
        )


class _Opened(NamedTuple):
    """A channel and what calls each RPC on it."""

    channel: grpc.aio.Channel
    methods: Mapping[str, Callable[..., Any]]


class AsyncClient(BaseClient):
    """The same calls, awaited. Make it anywhere, also at module level: each event loop that calls
    has a channel of its own, which its first call opens."""

    get_model = _awaiting(calls.get_model)
    list_models = _awaiting(calls.list_models)
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
        """Cancel what is under way in this event loop and disconnect; a later call reconnects."""
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
        calls.address(call.request, self._model, self._version)
        backoff = self._backoff(call)
        while True:
            pending = self._send(call, backoff.remaining())
            try:
                response = await pending
            except grpc.RpcError as error:
                await asyncio.sleep(self._wait_after(error, backoff))
            else:
                self._throttle.succeeded()
                return call.read(response)
            finally:
                pending.cancel()  # where our own task was cancelled, so that the server stops too

    async def _stream(self, call: Call[Samples]) -> AsyncSampleChunks:
        calls.address(call.request, self._model, self._version)
        missing = self._missing(call)
        while not missing.done:
            responses = self._send(call, missing.remaining())
            try:
                async for response in responses:
                    yield missing.accept(call.read(response))
                failure = missing.ended()
            except grpc.RpcError as error:
                failure = self._failure(error)
            finally:
                responses.cancel()  # also when the caller stops iterating: the server stops too
            if failure is not None and not missing.done:
                await asyncio.sleep(missing.wait_after(failure))

    def _stream_chunks(
        self, call: ChunkedCall[Iterable[Array] | AsyncIterable[Array]]
    ) -> AsyncReconstructions:
        return streaming.awaited(
            call.chunks,
            self._unanswered(call),
            Backoff(call.timeout, self._connection.attempts, self._connection.background),
            lambda seconds: self._methods["StreamReconstruct"](
                timeout=seconds, metadata=self._metadata
            ),
            self._failure,
        )
