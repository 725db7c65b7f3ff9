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
"""The default port of `latentd serve`."""

_SCHEMES: Final = ("dns:", "unix:", "ipv4:", "ipv6:", "unix-abstract:", "vsock:", "xds:")
"""The address schemes that gRPC resolves itself."""
_PROXY_VARIABLES: Final = ("grpc_proxy", "https_proxy", "http_proxy")
"""The variables that name gRPC's proxy; gRPC uses the first that is set."""


@dataclass(frozen=True)
class Connection:
    """The server's address and the settings of every call.

    Raises ConfigError if the fields contradict each other.
    """

    target: str  # as `parse_target` returns it
    credentials: grpc.ChannelCredentials | None = None  # None: no TLS
    token: str = field(default="", repr=False)  # sent as a bearer token
    background: bool = False  # lets interactive calls go first
    max_attempts: int = 4  # for a call that a server rejects or loses; 1: never retry
    healthy_only: bool = True  # skip servers whose health check is not SERVING
    max_message_bytes: int = 64 * MIB  # of a request or a response

    def __post_init__(self) -> None:
        if self.token and self.credentials is None and not is_loopback(self.target):
            raise ConfigError(
                f"Refusing to send the token in plain text to {self.target}. Pass credentials= "
                "(TLS), or call a server on this machine."
            )
        if not 1 <= self.max_attempts <= 5:
            raise ConfigError(f"attempts={self.max_attempts}: must be between 1 and 5.")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of every call."""
        priority = (("latentd-priority", "background"),) if self.background else ()
        return priority + ((("authorization", f"Bearer {self.token}"),) if self.token else ())

    @property
    def options(self) -> list[tuple[str, Any]]:
        """The channel's arguments."""
        return [
            ("grpc.service_config", json.dumps(self._service_config())),
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            # gRPC does not retry a larger request; the default is 256 KiB.
            ("grpc.per_rpc_retry_buffer_size", self.max_message_bytes),
            # A network that is cut sends no reset. On Linux the keepalive's timeout is TCP's user
            # timeout too, so 3 s after the ping that gets no ACK gRPC ends the connection's calls,
            # and they are tried again.
            ("grpc.keepalive_time_ms", 2_000),
            ("grpc.keepalive_timeout_ms", 3_000),
            # Nor does a frozen server, whose machine still sends ACKs. Its answer to the ping may
            # take long otherwise, too: on a slow link it waits behind the rows. The default is a
            # minute.
            ("grpc.http2.ping_timeout_ms", 10_000),
            ("grpc.http2.max_pings_without_data", 0),
            # The client reconnects within about a second after a restart or a repair.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            # Despite its name: what a connection may take to open. Far servers need several round
            # trips, for TCP, TLS and HTTP/2. The default, 20 s, would tell late of a silent one.
            ("grpc.min_reconnect_backoff_ms", 5_000),
            # A server that comes back at another address, such as a pod, is found this soon after a
            # failure. The default, 30 s, may be all the time that a call has.
            ("grpc.dns_min_time_between_resolutions_ms", 5_000),
            # By default gRPC uses the proxy for this machine's own addresses too.
            ("grpc.enable_http_proxy", int(not is_loopback(self.target))),
        ]

    def proxy_variable(self, environment: Mapping[str, str] = os.environ) -> str:
        """The variable that sends this connection through an HTTP proxy; empty: none."""
        if is_loopback(self.target):
            return ""
        excluded = environment.get("no_grpc_proxy") or environment.get("no_proxy") or ""
        host = self.target.rpartition("/")[2].rpartition(":")[0].strip("[]")
        # As gRPC compares them, except for ranges of addresses.
        if any(host.endswith(entry.strip()) for entry in excluded.split(",") if entry.strip()):
            return ""
        return next((name for name in _PROXY_VARIABLES if environment.get(name)), "")

    def open(self, transport: Any) -> Any:
        """A channel of `transport`, which is grpc or grpc.aio. The first call connects it."""
        if self.credentials is None:
            return transport.insecure_channel(self.target, options=self.options)
        return transport.secure_channel(self.target, self.credentials, options=self.options)

    def _service_config(self) -> dict[str, Any]:
        calls: dict[str, Any] = {"name": [{"service": SERVICE.full_name}]}
        if self.max_attempts > 1:
            # A server whose gRPC (1.85) is full sends CANCELLED before latentd sees the call. Only
            # gRPC can tell this from a call that the client itself has cancelled. All other
            # retries are the clients' own: see `retry`.
            calls["retryPolicy"] = {
                "maxAttempts": self.max_attempts,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["CANCELLED"],
            }
        config: dict[str, Any] = {
            # Use every address of the name, and not only the first that answers.
            "loadBalancingConfig": [{"round_robin": {}}],
            "methodConfig": [calls],
            "retryThrottling": {
                "maxTokens": retry.MAX_TOKENS,
                "tokenRatio": retry.TOKENS_PER_SUCCESS,
            },
        }
        if self.healthy_only:
            config["healthCheckConfig"] = {"serviceName": ""}
        return config


def parse_target(text: str) -> str:
    """A server's address in gRPC's form.

    text: host:port, grpc://host:port, or a gRPC address such as dns:///name:port and unix:/path.
    Raises ConfigError, which says what is missing.
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
    """Name of each RPC -> its callable on a channel of grpc or grpc.aio."""
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
    # The health service's messages hold one string and one enum, encoded like these two. So the
    # client does not need grpcio-health-checking.
    methods["Health"] = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=wrappers_pb2.StringValue.SerializeToString,
        response_deserializer=wrappers_pb2.Int32Value.FromString,
    )
    return methods


def _traced(call: Callable[..., Any]) -> Callable[..., Any]:
    """The callable, with the metadata of the span that is current when it is called."""

    def start(*requests: Any, timeout: float | None, metadata: tuple[Any, ...] = ()) -> Any:
        return call(*requests, timeout=timeout, metadata=(*metadata, *_current_span()))

    return start


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def is_loopback(target: str) -> bool:
    """Whether an address is this machine's own, judged by its text alone."""
    if target.startswith("unix:"):
        return True
    address = target.rpartition("/")[2].removeprefix("ipv4:").removeprefix("ipv6:")
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: it may resolve to any address
        return False


@dataclass(frozen=True)
class CredentialFiles:
    """The files of --tls-ca, --tls-cert, --tls-key and --token-file."""

    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    token_file: str | None = None

    def read(self) -> dict[str, Any]:
        """The clients' arguments `credentials` and `token`. Raises ConfigError if the files
        contradict each other or cannot be read."""
        try:
            token = Path(self.token_file).read_text().strip() if self.token_file else ""
            if self.token_file and not token:
                raise ConfigError(
                    f"--token-file {self.token_file} is empty. Write the bearer token into it."
                )
            return {"credentials": self._credentials(), "token": token}
        except OSError as error:
            raise ConfigError(f"Cannot read {error.filename}: {error.strerror}.") from None

    def _credentials(self) -> grpc.ChannelCredentials | None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigError("--tls-cert and --tls-key must be set together.")
        if not self.tls_ca:
            if self.tls_cert:
                raise ConfigError(
                    "--tls-cert needs --tls-ca, the certificate authority of the server."
                )
            return None
        files = (self.tls_ca, self.tls_key, self.tls_cert)
        authority, key, certificate = (Path(file).read_bytes() if file else None for file in files)
        return grpc.ssl_channel_credentials(authority, key, certificate)


def _current_span() -> tuple[tuple[str, str], ...]:
    """Metadata with the W3C trace context of the current OpenTelemetry span; empty without one.

    The server's span becomes its child.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()  # without this import there can be no span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return tuple(headers.items())
