"""What an adapter of a protocol is: it makes a method's request of a body, and content of the
method's response."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from latentd.http.calls import Calls
from latentd.http.responses import CountedResponse


@dataclass(frozen=True)
class Content:
    """A response's body and what its headers say about it."""

    body: bytes
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200


class Adapter(Protocol):
    """One request of another protocol. Its methods may take milliseconds: large bodies are
    converted in the event loop's executor."""

    @property
    def method(self) -> str:
        """The path of the gRPC method that is called."""

    def message(self, body: bytes) -> bytes:
        """The method's serialized request. Raises the errors of `latentd.errors`, which are
        recorded as the call's."""

    def content(self, message: bytes) -> Content:
        """What the HTTP response holds, of the method's serialized response."""


async def run(adapter: Adapter, request: Request, calls: Calls) -> Response:
    """Answer a request through an adapter. Raises Failed."""
    response = await calls.call(adapter.method, request).run(adapter.message)
    content = await asyncio.to_thread(adapter.content, response.message)
    headers = {**response.headers, **content.headers}
    return CountedResponse(
        calls.responses, content.body, headers, content.media_type, content.status
    )
