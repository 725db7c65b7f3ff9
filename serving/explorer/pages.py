"""The explorer's files over HTTP. They ask for nothing from any other host."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

_STATIC: Final = Path(__file__).parent / "static"
_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cache-control": "no-cache",  # a browser asks again, and gets 304 for what is unchanged
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def routes(grpc_target: Callable[[], str]) -> list[BaseRoute]:
    """/explore/NAME and the files that it loads.

    grpc_target: returns the address of the gRPC server, for the code that the page copies; without
                 a host it is the page's own
    """
    page = (_STATIC / "index.html").read_text()

    async def explore(request: Request) -> Response:
        told = page.replace("<html ", f'<html data-grpc="{html.escape(grpc_target())}" ', 1)
        return Response(told, headers=_HEADERS, media_type="text/html")

    async def index(request: Request) -> Response:
        return RedirectResponse(request.url.path + "/")

    return [
        Mount("/explore/static", _Files()),
        Route("/explore", index),
        Route("/explore/", explore),
        Route("/explore/{name}", explore),
    ]


class _Files:
    """The static files, with the page's headers."""

    def __init__(self) -> None:
        self._files = StaticFiles(directory=_STATIC)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
            await send(message)

        await self._files(scope, receive, send_with_headers)
