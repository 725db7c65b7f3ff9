"""The two clients, blocking and asyncio. The methods of both are built from `calls`."""

from __future__ import annotations

import asyncio
import copy
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
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, Self, TypeAlias, TypeVar

import grpc
import grpc.aio

from latentd import capabilities
from latentd.client import calls, streams
from latentd.client.calls import CLIENT_TIMEOUT, Call, ChunkedCall, set_model
from latentd.client.channel import MIB, Connection, methods, parse_target
from latentd.client.results import ModelInfo, ModelVersion, Samples, StreamedReconstruction
from latentd.client.retry import Backoff, Throttle, from_rpc
from latentd.client.streams import PendingChunks, ResumableSamples
from latentd.codec import Array
from latentd.errors import ConfigError, LatentdError, Overloaded

T = TypeVar("T")

_MAX_TIMEOUT: Final = 1e9
"""Seconds, some 30 years. A longer timeout means no limit: gRPC would take it for the past."""


class BaseClient:
    """A connection and the sending of calls over it. Subclasses open the channels."""

    def __init__(
        self,
        target: str,
        *,
        timeout: float | None = 30.0,
        model: str = "",
        version: int = 0,
        background: bool = False,
        credentials: grpc.ChannelCredentials | None = None,
        token: str = "",
        attempts: int = 4,
        healthy_only: bool = True,
        max_message_bytes: int = 64 * MIB,
    ) -> None:
        """The first call connects.

        target:       host:port (grpc://host:port is the same), or dns:///name:port to spread calls
                      over all addresses of a name. An HTTP proxy, set by the variables grpc_proxy,
                      https_proxy or http_proxy, is not used for this machine's addresses.
        timeout:      seconds for each call that sets none itself; None: no deadline.
        model:        empty: the server's default. version: 0: the newest.
        background:   other clients' calls go first; stream_reconstruct then retries an overloaded
                      server until its deadline.
        credentials:  grpc.ssl_channel_credentials(...) for TLS; None: no TLS.
        token:        bearer token; without TLS only to this machine.
        attempts:     maximum for each call if servers are unavailable or overloaded, 1 to 5.
        healthy_only: skip servers whose health check is not SERVING.
        max_message_bytes: of a request or a response.

        Raises ConfigError if these contradict each other.
        """
        self._connection = Connection(
            parse_target(target),
            credentials,
            token,
            background,
            attempts,
            healthy_only,
            max_message_bytes,
        )
        if timeout is not None and not timeout > 0:
            raise ConfigError(f"timeout={timeout}: must be positive, or None for no limit.")
        self._timeout, self._model, self._version = timeout, model, version
        self._unavailable: dict[tuple[str, int], Mapping[str, str]] = {}
        self._metadata = self._connection.metadata
        self._throttle = Throttle()
        self._open()

    def _open(self) -> None:
        """Prepare for `_methods`."""
        raise NotImplementedError

    @property
    def _methods(self) -> Mapping[str, Callable[..., Any]]:
        """Name of each RPC -> its callable."""
        raise NotImplementedError

    def with_version(self, served_by: ModelVersion) -> Self:
        """This client for one version only. It shares the connection: close only the original.

        After get_model, what that version cannot do raises InvalidArgument before anything is sent.
        """
        view = copy.copy(self)
        view._model, view._version = served_by.model, served_by.version
        return view

    def _prepare(self, call: Call[Any] | ChunkedCall[Any]) -> None:
        """Name the model. Raises InvalidArgument if it is known that this version cannot do it.

        get_model makes it known, and a version never changes. "The newest" does: there the server
        decides, as the client cannot know which version would answer.
        """
        request = call.request
        set_model(request, self._model, self._version)
        if call.needs and self._unavailable and request.version:
            unavailable = self._unavailable.get((request.model, request.version), {})
            for capability, field in call.needs:
                capabilities.require(request.model, unavailable, capability, field)

    def _read(self, call: Call[T], response: Any) -> T:
        result = call.read(response)
        if isinstance(result, ModelInfo):
            by = result.served_by
            self._unavailable[by.model, by.version] = result.unavailable
        return result

    def _send(self, call: Call[Any], seconds: float | None) -> Any:
        """Start the call. Returns grpc's response, grpc.aio's call, or a stream's iterator."""
        return self._methods[call.method](call.request, timeout=seconds, metadata=self._metadata)

    def _to_error(self, error: grpc.RpcError) -> LatentdError:
        failure = from_rpc(error, self._connection.target, self._connection.proxy_variable())
        failure.__cause__ = error
        return failure

    def _backoff(self, call: Call[Any]) -> Backoff:
        return Backoff(self._seconds(call), self._connection.max_attempts)

    def _wait_after(self, error: grpc.RpcError, backoff: Backoff) -> float:
        """Seconds until the next attempt of a unary call. Raises `error`'s LatentdError if there is
        none. Only Overloaded is retried here: gRPC itself has already retried UNAVAILABLE."""
        failure = self._to_error(error)
        if not isinstance(failure, Overloaded) or not self._throttle.failed():
            raise failure
        return backoff.wait_after(failure)

    def _pending_chunks(self, call: ChunkedCall[Any]) -> PendingChunks:
        self._prepare(call)
        return PendingChunks(call.request, call.in_flight)

    def _missing_samples(self, call: Call[Samples]) -> ResumableSamples:
        return ResumableSamples(call.request, self._seconds(call), self._connection.max_attempts)

    def _seconds(self, call: Call[Any]) -> float | None:
        seconds = self._timeout if call.timeout is CLIENT_TIMEOUT else call.timeout
        return None if seconds is not None and seconds > _MAX_TIMEOUT else seconds


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
        backoff = self._backoff(call)
        while True:
            try:
                response = self._send(call, backoff.remaining())
            except grpc.RpcError as error:
                time.sleep(self._wait_after(error, backoff))
            else:
                self._throttle.succeeded()
                return self._read(call, response)

    def _stream(self, call: Call[Samples]) -> SampleChunks:
        self._prepare(call)
        missing = self._missing_samples(call)
        while not missing.done:
            responses = self._send(call, missing.remaining())
            try:
                for response in responses:
                    yield missing.accept(call.read(response))
                failure = missing.check_end()
            except grpc.RpcError as error:
                failure = self._to_error(error)
            finally:
                responses.cancel()  # also if the caller stops iterating: the server stops too
            if failure is not None and not missing.done:
                time.sleep(missing.wait_after(failure))

    def _stream_chunks(self, call: ChunkedCall[Iterable[Array]]) -> Reconstructions:
        return streams.reconstruct_blocking(
            call.chunks,
            self._pending_chunks(call),
            Backoff(call.timeout, self._connection.max_attempts, self._connection.background),
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
        backoff = self._backoff(call)
        while True:
            pending = self._send(call, backoff.remaining())
            try:
                response = await pending
            except grpc.RpcError as error:
                await asyncio.sleep(self._wait_after(error, backoff))
            else:
                self._throttle.succeeded()
                return self._read(call, response)
            finally:
                pending.cancel()  # if this task was cancelled, the server stops too

    async def _stream(self, call: Call[Samples]) -> AsyncSampleChunks:
        self._prepare(call)
        missing = self._missing_samples(call)
        while not missing.done:
            responses = self._send(call, missing.remaining())
            try:
                async for response in responses:
                    yield missing.accept(call.read(response))
                failure = missing.check_end()
            except grpc.RpcError as error:
                failure = self._to_error(error)
            finally:
                responses.cancel()  # also if the caller stops iterating: the server stops too
            if failure is not None and not missing.done:
                await asyncio.sleep(missing.wait_after(failure))

    def _stream_chunks(
        self, call: ChunkedCall[Iterable[Array] | AsyncIterable[Array]]
    ) -> AsyncReconstructions:
        return streams.reconstruct_async(
            call.chunks,
            self._pending_chunks(call),
            Backoff(call.timeout, self._connection.max_attempts, self._connection.background),
            lambda seconds: self._methods["StreamReconstruct"](
                timeout=seconds, metadata=self._metadata
            ),
            self._to_error,
        )
