"""What both clients are told when they are made, and what they make of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Final, Self

import grpc

from latentd.client.calls import CLIENT_TIMEOUT, Call, ChunkedCall, address
from latentd.client.connection import MIB, Connection, parse_target
from latentd.client.failures import from_rpc
from latentd.client.pending import PendingChunks
from latentd.client.results import ModelVersion, Samples
from latentd.client.resume import ResumableSamples
from latentd.client.retries import Backoff, Throttle
from latentd.errors import ConfigError, LatentdError, Overloaded

_LONGEST: Final = 1e9
"""Seconds, some 30 years: what is longer is no limit, where gRPC would take it for the past."""


class BaseClient:
    """A connection, and how calls are sent over it. Subclasses open the channels."""

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
        """Connects with the first call.

        target:       host:port (grpc://host:port is the same), or dns:///name:port to spread calls
                      over all addresses of a name. An HTTP proxy, where the variables grpc_proxy,
                      https_proxy or http_proxy name one, is not asked for this machine's addresses.
        timeout:      seconds for each call that names none itself; None: no deadline.
        model:        empty: the server's default. version: 0: the newest.
        background:   let other clients' calls go first; stream_reconstruct then waits for an
                      overloaded server until its deadline.
        credentials:  grpc.ssl_channel_credentials(...) for TLS; None: no TLS.
        token:        bearer token; without TLS only to this machine.
        attempts:     at each call while servers are unavailable or overloaded, 1 to 5.
        healthy_only: pass over servers whose health check does not say SERVING.
        max_message_bytes: of a request or a response.

        Raises ConfigError where these contradict each other.
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
            raise ConfigError(f"timeout={timeout}: say seconds above 0, or no limit.")
        self._timeout, self._model, self._version = timeout, model, version
        self._metadata = self._connection.metadata
        self._throttle = Throttle()
        self._open()

    def _open(self) -> None:
        """Prepare what `_methods` needs."""
        raise NotImplementedError

    @property
    def _methods(self) -> Mapping[str, Callable[..., Any]]:
        """Name of each RPC -> what calls it."""
        raise NotImplementedError

    def pinned(self, served_by: ModelVersion) -> Self:
        """This client for one version only. It shares the connection: close just the original."""
        view = copy.copy(self)
        view._model, view._version = served_by.model, served_by.version
        return view

    def _send(self, call: Call[Any], seconds: float | None) -> Any:
        """Start the call: a response of grpc's, a call of grpc.aio's, an iterator for a stream."""
        return self._methods[call.method](call.request, timeout=seconds, metadata=self._metadata)

    def _failure(self, error: grpc.RpcError) -> LatentdError:
        failure = from_rpc(error, self._connection.target, self._connection.proxy_variable())
        failure.__cause__ = error
        return failure

    def _backoff(self, call: Call[Any]) -> Backoff:
        return Backoff(self._seconds(call), self._connection.attempts)

    def _wait_after(self, error: grpc.RpcError, backoff: Backoff) -> float:
        """Seconds until a call that is no stream is tried again; raises what `error` says if it is
        not: servers that were unavailable gRPC has tried already."""
        failure = self._failure(error)
        if not isinstance(failure, Overloaded) or not self._throttle.failed():
            raise failure
        return backoff.wait_after(failure)

    def _unanswered(self, call: ChunkedCall[Any]) -> PendingChunks:
        address(call.request, self._model, self._version)
        return PendingChunks(call.request, call.in_flight)

    def _missing(self, call: Call[Samples]) -> ResumableSamples:
        return ResumableSamples(call.request, self._seconds(call), self._connection.attempts)

    def _seconds(self, call: Call[Any]) -> float | None:
        seconds = self._timeout if call.timeout is CLIENT_TIMEOUT else call.timeout
        return None if seconds is not None and seconds > _LONGEST else seconds
