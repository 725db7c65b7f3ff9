"""How the client reaches servers: address, balancing, retries, keepalive, credentials, tracing."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf import message_factory, wrappers_pb2

from latentd.client import retry
from latentd.errors import ConfigError
from latentd.pb import vae_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["VaeService"]
MIB: Final = 1 << 20
DEFAULT_PORT: Final = 50051
"""Where `latentd serve` listens if it is not told otherwise."""

_SCHEMES: Final = ("dns:", "unix:", "ipv4:", "ipv6:", "unix-abstract:", "vsock:", "xds:")
"""The forms of an address that gRPC resolves itself."""
_PROXY_VARIABLES: Final = ("grpc_proxy", "https_proxy", "http_proxy")
"""The variables in which gRPC looks for a proxy; the first that is set counts."""


@dataclass(frozen=True)
class Connection:
    """Where calls go and what each of them carries.

    Raises ConfigError where the fields contradict each other.
    """

    target: str  # as `parse_target` returns it
    credentials: grpc.ChannelCredentials | None = None  # None: no TLS
    token: str = field(default="", repr=False)  # sent as a bearer token
    background: bool = False  # lets interactive calls go first
    attempts: int = 4  # at a call that the server refuses or loses; 1: never retry
    healthy_only: bool = True  # pass over servers whose health check does not say SERVING
    max_message_bytes: int = 64 * MIB  # either way

    def __post_init__(self) -> None:
        if self.token and self.credentials is None and not is_loopback(self.target):
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
            # gRPC would ask a proxy for this machine's own addresses too.
            ("grpc.enable_http_proxy", int(not is_loopback(self.target))),
        ]

    def proxy_variable(self, environment: Mapping[str, str] = os.environ) -> str:
        """The variable that sends this connection through an HTTP proxy; empty: none does."""
        if is_loopback(self.target):
            return ""
        excluded = environment.get("no_grpc_proxy") or environment.get("no_proxy") or ""
        host = self.target.rpartition("/")[2].rpartition(":")[0].strip("[]")
        # As gRPC compares them, but for ranges of addresses.
        if any(host.endswith(entry.strip()) for entry in excluded.split(",") if entry.strip()):
            return ""
        return next((name for name in _PROXY_VARIABLES if environment.get(name)), "")

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
                # CANCELLED, from the server: so gRPC (1.85) refuses calls it has no place for, and
                # the server never sees them.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            }
        # Streams go on by themselves from any row (`streams`); a retry would come on top.
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
                "maxTokens": retry.MOST_TOKENS,
                "tokenRatio": retry.TOKENS_PER_SUCCESS,
            },
        }
        if self.healthy_only:
            config["healthCheckConfig"] = {"serviceName": ""}
        return config


def parse_target(text: str) -> str:
    """A server's address in gRPC's form.

    text: host:port, grpc://host:port, or a form of gRPC's own as dns:///name:port and unix:/path.
    Raises ConfigError that says what is missing.
    """
    target = text.removeprefix("grpc://")
    if "://" in target and not target.startswith(_SCHEMES):
        raise ConfigError(
            f"Invalid address {text!r}: use host:port, without {target.partition('://')[0]}://. "
            "For TLS also pass credentials= (on the command line --tls-ca)."
        )
    if target.startswith(_SCHEMES) and not target.startswith("dns:"):
        return target
    host, colon, port = target.rpartition("/")[2].rpartition(":")
    bare_ipv6 = ":" in host and not host.endswith("]")
    if not colon or bare_ipv6 or (host.startswith("[") and not host.endswith("]")):
        name = f"[{target}]" if _is_ipv6(target) else target
        raise ConfigError(
            f"Invalid address {text!r}: the port is missing. Use host:port, for example "
            f"{name or 'localhost'}:{DEFAULT_PORT}."
        )
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ConfigError(
            f"Invalid address {text!r}: use host:port with a port from 1 to 65535, for example "
            f"{host or 'localhost'}:{DEFAULT_PORT}."
        )
    return target


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
        return call(*requests, timeout=timeout, metadata=(*metadata, *_current_span()))

    return begin


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def is_loopback(target: str) -> bool:
    """Whether an address is this machine's own, by its form alone."""
    if target.startswith("unix:"):
        return True
    address = target.rpartition("/")[2].removeprefix("ipv4:").removeprefix("ipv6:")
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, and names can be made to look like anything
        return False


@dataclass(frozen=True)
class CredentialFiles:
    """What --tls-ca, --tls-cert, --tls-key and --token-file name."""

    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    token_file: str | None = None

    def read(self) -> dict[str, Any]:
        """`credentials` and `token` as clients take them. Raises ConfigError where the files
        contradict each other or cannot be read."""
        try:
            token = Path(self.token_file).read_text().strip() if self.token_file else ""
            if self.token_file and not token:
                raise ConfigError(f"--token-file {self.token_file} holds no token.")
            return {"credentials": self._credentials(), "token": token}
        except OSError as error:
            raise ConfigError(f"{error.filename} cannot be read: {error.strerror}.") from None

    def _credentials(self) -> grpc.ChannelCredentials | None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigError("--tls-cert and --tls-key go together: give both or none.")
        if not self.tls_ca:
            if self.tls_cert:
                raise ConfigError(
                    "--tls-cert needs --tls-ca, the authority that the server is from."
                )
            return None
        files = (self.tls_ca, self.tls_key, self.tls_cert)
        authority, key, certificate = (Path(file).read_bytes() if file else None for file in files)
        return grpc.ssl_channel_credentials(authority, key, certificate)


def _current_span() -> tuple[tuple[str, str], ...]:
    """Metadata with W3C's trace context; empty where there is no span."""
    if "opentelemetry.trace" not in sys.modules:
        return ()  # who has a span has imported it
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return tuple(headers.items())
