"""How the client reaches servers: address, balancing, retries, keepalive, credentials."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from google.protobuf import message_factory, wrappers_pb2

from serving.client import retries, spans
from serving.errors import ConfigError
from serving.pb import vae_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["VaeService"]
MIB: Final = 1 << 20


@dataclass(frozen=True)
class Connection:
    """Where calls go and what each of them carries.

    Raises ConfigError where the fields contradict each other.
    """

    target: str  # host:port, or dns:///name:port for every address behind a name
    credentials: grpc.ChannelCredentials | None = None  # None: no TLS
    token: str = field(default="", repr=False)  # sent as a bearer token
    background: bool = False  # lets interactive calls go first
    attempts: int = 4  # at a call that the server refuses or loses; 1: never retry
    healthy_only: bool = True  # pass over servers whose health check does not say SERVING
    max_message_bytes: int = 64 * MIB  # either way

    def __post_init__(self) -> None:
        if not self.target or self.target.startswith(("http://", "https://")):
            raise ConfigError(f"{self.target!r} is no address of a server: say host:port.")
        if self.token and self.credentials is None and not _is_loopback(self.target):
            raise ConfigError(
                f"The token would travel readable to {self.target}. Give credentials= (TLS), or "
                "call a server on this machine."
            )
        if not 1 <= self.attempts <= 5:
            raise ConfigError(f"attempts={self.attempts}: gRPC makes 1 to 5 attempts at a call.")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        priority = (("latentd-priority", "background"),) if self.background else ()
        return priority + ((("authorization", f"Bearer {self.token}"),) if self.token else ())

    @property
    def options(self) -> list[tuple[str, Any]]:
        """The channel's arguments."""
        return [
            ("grpc.service_config", json.dumps(self._service_config())),
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            # A request that does not fit here is not retried; the default is 256 KiB.
            ("grpc.per_rpc_retry_buffer_size", self.max_message_bytes),
            # A server that is stopped or cut off sends no reset; calls to it are tried elsewhere
            # after these 5 s. Without the ping timeout gRPC waits for its own, a minute.
            ("grpc.keepalive_time_ms", 2_000),
            ("grpc.keepalive_timeout_ms", 3_000),
            ("grpc.http2.ping_timeout_ms", 3_000),
            ("grpc.http2.max_pings_without_data", 0),
            # A restarted server is found again within seconds.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.min_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 5_000),
        ]

    def open(self, transport: Any) -> Any:
        """A channel of `transport`, grpc or grpc.aio; it connects with the first call."""
        if self.credentials is None:
            return transport.insecure_channel(self.target, options=self.options)
        return transport.secure_channel(self.target, self.credentials, options=self.options)

    def _service_config(self) -> dict[str, Any]:
        calls: dict[str, Any] = {"name": [{"service": SERVICE.full_name}]}
        if self.attempts > 1:
            # Safe: every RPC only computes. What is RESOURCE_EXHAUSTED the clients try again
            # themselves, and only where the server says when: gRPC takes any for overload, also a
            # message that is too large, and would send it in vain as often as it may.
            calls["retryPolicy"] = {
                "maxAttempts": self.attempts,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            }
        # Streams go on by themselves from any row (`resume`); a retry would come on top.
        streams = [
            {"service": SERVICE.full_name, "method": method.name}
            for method in SERVICE.methods
            if method.server_streaming
        ]
        config: dict[str, Any] = {
            # Every address behind the name, and not only the first one that answers.
            "loadBalancingConfig": [{"round_robin": {}}],
            "methodConfig": [calls, {"name": streams}],
            "retryThrottling": {
                "maxTokens": retries.MOST_TOKENS,
                "tokenRatio": retries.TOKENS_PER_SUCCESS,
            },
        }
        if self.healthy_only:
            config["healthCheckConfig"] = {"serviceName": ""}
        return config


def methods(channel: Any) -> dict[str, Callable[..., Any]]:
    """Name of each RPC -> what calls it on a channel of grpc or grpc.aio."""
    methods = {}
    for method in SERVICE.methods:
        kind = channel.unary_stream if method.server_streaming else channel.unary_unary
        if method.client_streaming:
            kind = channel.stream_stream
        request, response = map(
            message_factory.GetMessageClass, (method.input_type, method.output_type)
        )
        call = kind(
            f"/{SERVICE.full_name}/{method.name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        methods[method.name] = _traced(call)
    # The health service's messages hold one string and one enum: on the wire, these two. Its own
    # come with grpcio-health-checking, which a client does not need.
    methods["Health"] = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=wrappers_pb2.StringValue.SerializeToString,
        response_deserializer=wrappers_pb2.Int32Value.FromString,
    )
    return methods


def _traced(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, below whatever span is current when it is made."""

    def begin(*requests: Any, timeout: float | None, metadata: tuple[Any, ...] = ()) -> Any:
        return call(*requests, timeout=timeout, metadata=(*metadata, *spans.current()))

    return begin


def _is_loopback(target: str) -> bool:
    if target.startswith("unix:"):
        return True
    address = target.rpartition("/")[2].removeprefix("ipv4:").removeprefix("ipv6:")
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, and names can be made to look like anything
        return False
