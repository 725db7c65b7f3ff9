"""The application of the HTTP port: its routes, and what every request has in common."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from latentd.calls.stats import REQUEST_ID, CallStats
from latentd.explorer import connect, pages
from latentd.http import adapters, openapi, remote_vae, responses
from latentd.http import open_inference as oip
from latentd.http.adapters import Adapter
from latentd.http.calls import Calls, Failed
from latentd.http.connect import OwnCaller
from latentd.http.health import SERVICES, Health
from latentd.http.sample import Samples
from latentd.models.repository import Repository
from latentd.transport.status import status

log = logging.getLogger(__name__)

_OF_MODELS: Final[tuple[tuple[str, Callable[[Request], Adapter], list[str]], ...]] = (
    ("", oip.METADATA, ["GET"]),
    ("/config", oip.CONFIG, ["GET"]),
    ("/stats", oip.STATISTICS, ["GET"]),
    ("/ready", oip.READY, ["GET"]),
    ("/infer", oip.Infer, ["POST"]),
)
"""Below a model of the Open Inference Protocol, or one of its versions."""

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(calls: Calls, repository: Repository, grpc_target: Callable[[], str]) -> Starlette:
    """The ASGI application.

    calls: runs requests as calls of gRPC methods
    repository: what adapters must know of a model before they make the call
    grpc_target: see explorer.pages
    """

    def _adapted(kind: Callable[[Request, Repository], Adapter]) -> Endpoint:
        return _adapt(lambda request: kind(request, repository), calls)

    routes = [
        *pages.routes(grpc_target),
        Route(connect.PATH, _answer(_connect(calls)), methods=["POST"]),
        *(Route(f"/v2/health/{kind}", _answer(Health(calls, kind))) for kind in SERVICES),
        *(
            Route(f"/vae/{{name}}/{name}", _answer(_adapted(kind)), methods=["POST"])
            for name, kind in (("decode", remote_vae.Decode), ("encode", remote_vae.Encode))
        ),
        Route("/", _to_docs),
        Route("/docs", _static(openapi.page(), "text/html; charset=utf-8", openapi.POLICY)),
        Route("/openapi.json", _static(openapi.document(), "application/json")),
        Route("/v2", _answer(_adapt(oip.SERVER, calls))),
        Route("/v2/models/stats", _answer(_adapt(oip.STATISTICS, calls))),
        Route("/v2/repository/index", _answer(_adapt(oip.INDEX, calls)), methods=["POST"]),
        *(
            Route(
                f"/v2/models/{{name}}{version}{path}", _answer(_adapt(kind, calls)), methods=verbs
            )
            for version in ("", "/versions/{version}")
            for path, kind, verbs in _OF_MODELS
        ),
        Route("/sample/{name}.{suffix}", _answer(Samples(calls, repository))),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(responses.CommonHeaders)],
        exception_handlers={HTTPException: _no_route},
    )
    # Its redirect would name the host and the scheme by what the client sent.
    app.router.redirect_slashes = False
    return app


def _static(body: bytes, media_type: str, policy: str = "default-src 'none'") -> Endpoint:
    """A file that needs no token. policy: its Content-Security-Policy"""

    async def give(request: Request) -> Response:
        return Response(body, 200, {"content-security-policy": policy}, media_type)

    return give


async def _to_docs(request: Request) -> Response:
    return Response(status_code=307, headers={"location": "docs"})


def _adapt(adapter: Callable[[Request], Adapter], calls: Calls) -> Endpoint:
    async def adapt(request: Request) -> Response:
        return await adapters.run(adapter(request), request, calls)

    return adapt


def _connect(calls: Calls) -> Endpoint:
    endpoint = connect.endpoint(OwnCaller(calls))

    async def answer(request: Request) -> Response:
        return responses.counted(await endpoint(request), calls.responses)

    return answer


def _answer(endpoint: Endpoint) -> Endpoint:
    """The endpoint; every error it raises becomes a response."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Failed as failed:
            return responses.error(failed.status, failed.headers, failed.http_status)
        except Exception as error:
            stats = CallStats()  # it makes a request id, unless the client sent one
            stats.set_header(REQUEST_ID, request.headers.get(REQUEST_ID, ""))
            ended = status(error, request.url.path, stats.request_id)
            return responses.error(ended, {REQUEST_ID: stats.request_id})

    return answer


async def _no_route(request: Request, error: Any) -> Response:
    """A path that is not there, or a method that its path does not take."""
    what = f"{request.method} {request.url.path[:200]}: {error.detail}. /docs lists what is here."
    return responses.json_response({"error": what}, error.headers, error.status_code)
