"""What both clients share: their arguments, and how a call is prepared, sent and retried."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Final, Self, TypeVar

import grpc

from latentd import capabilities
from latentd.client.call import CLIENT_TIMEOUT, Call, ChunkedCall, set_model
from latentd.client.channel import MIB, Connection, parse_target
from latentd.client.results import ModelInfo, ModelVersion
from latentd.client.retry import Backoff, Contact, RetryPolicy, from_rpc
from latentd.client.streams import PendingChunks
from latentd.errors import ConfigError, LatentdError

T = TypeVar("T")

_MAX_TIMEOUT: Final = 1e9
"""Seconds, some 30 years. A longer timeout means no limit: gRPC would take it for the past."""


class BaseClient(ABC):
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
        wait_for_ready: bool = False,
        reconnect_timeout: float | None = 600.0,
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
        attempts:     maximum for each call, 1 to 5, if servers are overloaded, or if none has ever
                      answered this client: its address may be wrong. Servers that have answered
                      and are lost are waited for until the call's deadline. 1: never try again.
        wait_for_ready: the address is right: wait as long for servers that have never answered.
        reconnect_timeout: seconds that a call without a deadline, such as a stream, waits for lost
                      servers, since its last response; None: for ever.
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
        for name, seconds in (("timeout", timeout), ("reconnect_timeout", reconnect_timeout)):
            if seconds is not None and not seconds > 0:
                raise ConfigError(f"{name}={seconds}: must be positive, or None for no limit.")
        self._timeout, self._model, self._version = timeout, model, version
        self._unavailable: dict[tuple[str, int], Mapping[str, str]] = {}
        self._metadata = self._connection.metadata
        self._policy = RetryPolicy(
            attempts,
            math.inf if reconnect_timeout is None else reconnect_timeout,
            Contact(self._connection.target, wait_for_ready),
        )
        self._open()

    @abstractmethod
    def _open(self) -> None:
        """Prepare for `_methods`."""

    @property
    @abstractmethod
    def _methods(self) -> Mapping[str, Callable[..., Any]]:
        """Name of each RPC -> its callable."""

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

    def _backoff(self, timeout: float | None, patient: bool = False) -> Backoff:
        return Backoff(self._policy, timeout, patient)

    def _pending_chunks(self, call: ChunkedCall[Any]) -> PendingChunks:
        self._prepare(call)
        return PendingChunks(call.request, call.in_flight, call.fit)

    def _seconds(self, call: Call[Any]) -> float | None:
        seconds = self._timeout if call.timeout is CLIENT_TIMEOUT else call.timeout
        return None if seconds is not None and seconds > _MAX_TIMEOUT else seconds
