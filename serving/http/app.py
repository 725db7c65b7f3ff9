"""The application of the HTTP port: its routes, and what every request has in common."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from latentd.calls.stats import REQUEST_ID, CallStats
from latentd.http import adapters, remote_vae, responses
from latentd.http.adapters import Adapter
from latentd.http.calls import Calls, Failed
from latentd.http.health import SERVICES, Health
from latentd.http.sample import Samples
from latentd.models.repository import Repository
from latentd.transport.status import status

log = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(calls: Calls, repository: Repository) -> Starlette:
    """The ASGI application.

    calls: runs requests as calls of gRPC methods
    repository: what adapters must know of a model before they make the call
    """

    def _adapted(kind: Callable[[Request, Repository], Adapter]) -> Endpoint:
        async def adapt(request: Request) -> Response:
            return await adapters.run(kind(request, repository), request, calls)

        return adapt

    routes = [
        *(Route(f"/v2/health/{kind}", _answer(Health(calls, kind))) for kind in SERVICES),
        *(
            Route(f"/vae/{{name}}/{name}", _answer(_adapted(kind)), methods=["POST"])
            for name, kind in (("decode", remote_vae.Decode), ("encode", remote_vae.Encode))
        ),
        Route("/sample/{name}.{suffix}", _answer(Samples(calls, repository))),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(responses.CommonHeaders)],
        exception_handlers={HTTPException: _no_route},
    )


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
