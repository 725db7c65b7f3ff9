"""The gRPC front end. One of two listeners feeds the same handlers, chosen at start-up:

core   drives gRPC's core directly: `listener_core`. It uses names that grpcio does not publish,
       so it is chosen only if a self-test of it succeeds.
aio    grpc.aio, published and stable, at several times the cost of a call: `listener_aio`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Protocol

import grpc

from latentd.errors import ConfigError
from latentd.transport import listener_core
from latentd.transport.handlers import CallStream, Handler
from latentd.transport.listener_aio import AioListener
from latentd.transport.listener_core import CoreListener
from latentd.transport.request_memory import PartialRequests
from latentd.transport.response_memory import PendingResponses
from latentd.transport.status import Status

log = logging.getLogger(__name__)

Option = tuple[str, int]


class Listener(Protocol):
    """What the server needs of either listener.

    handlers: by path; may be replaced at any time, for the calls that arrive after it.
    turns: odd while the listener's own thread handles an event, higher with each; 0: no thread.
    """

    handlers: Mapping[str, Handler]
    turns: int

    def bind(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Open a port, with TLS if credentials are given; returns its number, 0 on failure."""

    async def start(self) -> None: ...

    async def stop(self, grace: float) -> None:
        """Stop accepting calls, let those in flight finish for `grace` seconds, cancel the rest."""


def create_listener(
    kind: str, options: list[Option], responses: PendingResponses, requests: PartialRequests
) -> Listener:
    """The listener for `kind`, auto | core | aio. Raises ConfigError if core is asked for and its
    self-test fails."""
    problem = "" if kind == "aio" else _self_test(responses, requests)
    if kind == "core" and problem:
        raise ConfigError(f"--listener core is not available: {problem}. Use auto or aio.")
    if kind == "aio" or problem:
        log.warning("Using the grpc.aio listener (%s).", problem or "requested")
        return AioListener({}, options, responses, requests)
    return CoreListener({}, options, responses, requests)


def _self_test(responses: PendingResponses, requests: PartialRequests) -> str:
    """Make one call through a core listener; returns what went wrong, "" if nothing."""
    if not listener_core.available():
        return "grpc._cython.cygrpc is not available"

    async def echo(stream: CallStream) -> Status:
        return Status(message=await stream.read())

    async def attempt() -> None:
        listener = CoreListener({"/self-test": Handler(echo)}, [], responses, requests)
        port = listener.bind("127.0.0.1:0")
        await listener.start()
        try:
            options = [("grpc.enable_http_proxy", 0)]  # the call must not leave this machine
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
                call: Any = channel.unary_unary("/self-test")
                response = await call(b"once", timeout=2)
            if response != b"once":
                raise ValueError(f"the response was {response!r}")
        finally:
            await listener.stop(0)

    try:
        asyncio.run(attempt())
    except Exception as error:
        return f"self-test with grpcio {grpc.__version__} failed ({type(error).__name__})"
    return ""
