"""HTTP responses: the codes of errors, and bodies whose unread memory is counted."""

from __future__ import annotations

import email.utils
import json
import math
from collections.abc import Mapping
from typing import Any, Final

import grpc
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentd.explorer.connect import http_status_of
from latentd.transport.response_memory import STREAM_COPIES, PendingResponses
from latentd.transport.status import Status

_CHUNK: Final = 64 << 10
_PUSHBACK: Final = "grpc-retry-pushback-ms"


def error(status: Status, headers: Mapping[str, str], http_status: int = 0) -> Response:
    """A JSON object with the key "error", a sentence.

    http_status: 0: the one that the status's code means
    """
    found = dict(headers)
    if status.code is grpc.StatusCode.UNAUTHENTICATED:
        found["www-authenticate"] = "Bearer"
    for name, value in status.trailers:
        if name == _PUSHBACK and int(value) >= 0:
            found["retry-after"] = str(math.ceil(int(value) / 1000))
    code = http_status or http_status_of(status.code.name)
    return json_response({"error": status.details}, found, code)


def json_response(
    content: Any, headers: Mapping[str, str] | None = None, status_code: int = 200
) -> Response:
    """A short JSON document."""
    body = json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    return Response(body, status_code, headers, "application/json")


class CountedResponse(Response):
    """A response whose memory is counted until its client has read it: beyond the limit, the
    connections of those that wait longest are closed."""

    def __init__(
        self,
        responses: PendingResponses,
        body: bytes,
        headers: Mapping[str, str],
        media_type: str,
        status: int = 200,
    ) -> None:
        super().__init__(body, status, headers, media_type)
        self._responses = responses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = scope["state"]["connection"]

        def drop() -> None:  # in any thread
            connection.loop.call_soon_threadsafe(connection.transport.abort)

        number = self._responses.reserve(STREAM_COPIES // 2 * len(self.body), drop)
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            # In parts: each waits until the client has taken the one before it.
            for start in range(0, max(1, len(self.body)), _CHUNK):
                part = self.body[start : start + _CHUNK]
                more = start + _CHUNK < len(self.body)
                await send({"type": "http.response.body", "body": part, "more_body": more})
        finally:
            self._responses.release(number)


def counted(response: Response, responses: PendingResponses) -> Response:
    """The response; a successful one as a CountedResponse."""
    if response.status_code != 200:
        return response
    names = ("content-type", "content-length")
    headers = {key: value for key, value in response.headers.items() if key not in names}
    kind = response.headers["content-type"]
    return CountedResponse(responses, bytes(response.body), headers, kind)


_COMMON: Final = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))


class CommonHeaders:
    """Adds to every response: the date, what keeps browsers from guessing its type, and that it is
    not to be stored, unless the response says otherwise."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message["headers"])
                present = {name for name, _ in headers}
                date = email.utils.formatdate(usegmt=True).encode()
                headers += [
                    (name, value)
                    for name, value in ((b"date", date), *_COMMON)
                    if name not in present
                ]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_with_headers)
