"""Forwards calls to a server over gRPC, as they are."""

from __future__ import annotations

from typing import Any, Final

import grpc
import grpc.aio
from starlette.requests import Request

from latentd.client.channel import Connection, parse_target
from latentd.explorer.connect import Answer, Convert

_FORWARDED: Final = (
    "authorization",
    "latentd-priority",
    "x-request-id",
    "traceparent",
    "tracestate",
)
"""The headers that reach the server as metadata."""


class Forwarder:
    """See connect.Caller. The first call connects."""

    def __init__(
        self, server: str, credentials: grpc.ChannelCredentials | None = None, token: str = ""
    ) -> None:
        """token: sent with calls that bring none. Raises ConfigError."""
        self._connection = Connection(parse_target(server), credentials, token, max_attempts=1)
        self._channel: Any = None

    async def __call__(
        self, path: str, request: Request, convert: Convert, seconds: float | None
    ) -> Answer:
        message = convert(await request.body())
        if self._channel is None:  # here, in the event loop that will use it
            self._channel = self._connection.open(grpc.aio)
        given = [(key, request.headers[key]) for key in _FORWARDED if key in request.headers]
        if "authorization" not in request.headers:
            given += [one for one in self._connection.metadata if one[0] == "authorization"]
        call = self._channel.unary_unary(path)(message, timeout=seconds, metadata=tuple(given))
        try:
            response: bytes = await call
        except grpc.aio.AioRpcError as error:
            return Answer(
                error.code().name,
                error.details() or "",
                b"",
                tuple(error.trailing_metadata() or ()),
            )
        return Answer("OK", "", response, tuple(await call.trailing_metadata() or ()))
