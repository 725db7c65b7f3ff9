"""GET /v2/health/live and /v2/health/ready: as grpc.health.v1 answers, for probes."""

from __future__ import annotations

from typing import Final

from grpc_health.v1 import health_pb2
from starlette.requests import Request
from starlette.responses import Response

from latentd.http.calls import Calls
from latentd.http.responses import json_response

PATH: Final = "/grpc.health.v1.Health/Check"
SERVICES: Final = {"live": "liveness", "ready": "readiness"}


class Health:
    """The endpoint."""

    def __init__(self, calls: Calls, kind: str) -> None:
        self._calls, self._kind = calls, kind

    async def __call__(self, request: Request) -> Response:
        kind = self._kind
        message = health_pb2.HealthCheckRequest(service=SERVICES[kind]).SerializeToString()
        response = await self._calls.call(PATH, request).run(lambda body: message)
        found = health_pb2.HealthCheckResponse.FromString(response.message)
        serving = found.status == health_pb2.HealthCheckResponse.SERVING
        return json_response({kind: serving}, response.headers, 200 if serving else 503)
