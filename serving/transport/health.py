"""grpc.health.v1, and the probes of the Open Inference Protocol: the serving status, for probes and
for clients that balance load."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import grpc
from grpc_health.v1 import health_pb2

from latentd.calls.coroutines import Future
from latentd.errors import Overloaded, Unavailable
from latentd.pb.open_inference_pb2 import (
    ServerLiveRequest,
    ServerLiveResponse,
    ServerReadyRequest,
    ServerReadyResponse,
)
from latentd.transport import messages
from latentd.transport.handlers import OPEN_INFERENCE, CallStream, Handler
from latentd.transport.status import Status

Response = health_pb2.HealthCheckResponse

LIVENESS: Final = "liveness"
"""The service name whose status says that the server makes progress."""
READINESS: Final = "readiness"
"""The service name whose status says that the server accepts work."""
STARTUP: Final = "startup"
"""The service name whose status says that the server has once accepted work."""

MAX_WATCHES: Final = 4096
"""Each takes about 20 KB of memory as long as its connection lasts."""
MAX_WATCHES_PER_CONNECTION: Final = 16
"""A gRPC client has one for each service whose health it follows."""
_RETRY_AFTER: Final = 1.0  # seconds


class Health:
    """The status of each service name, and the calls that watch it."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {LIVENESS: True, READINESS: False, STARTUP: False}
        self._lock = threading.Lock()
        self._watchers: set[Future[None]] = set()
        self._watches: Counter[str] = Counter()  # by the client's address and port
        self._closed = False

    def set(self, service: str, serving: bool) -> None:
        """Set whether a service serves, and notify its watches."""
        with self._lock:
            self._serving[service] = serving
            watchers, self._watchers = self._watchers, set()
        for watcher in watchers:
            watcher.set_result(None)

    def is_serving(self, service: str) -> bool:
        """Whether a service serves; one that was never set does not."""
        return self._serving.get(service, False)

    def close(self) -> None:
        """End the watches: they do not end by themselves, so a drain would wait for them."""
        with self._lock:
            self._closed = True
            watchers, self._watchers = self._watchers, set()
        for watcher in watchers:
            watcher.set_result(None)

    def handlers(self) -> dict[str, Handler]:
        """The methods by path."""
        health, open_inference = "/grpc.health.v1.Health/", f"/{OPEN_INFERENCE.full_name}/"
        return {
            f"{health}Check": Handler(self._check),
            f"{health}Watch": Handler(self._watch),
            f"{open_inference}ServerLive": Handler(self._live),
            f"{open_inference}ServerReady": Handler(self._ready),
        }

    async def _live(self, stream: CallStream) -> Status:
        messages.parse(ServerLiveRequest, await stream.read(small=True) or b"", messages.SMALL)
        response = ServerLiveResponse(live=self._serving[LIVENESS])
        return Status(message=response.SerializeToString())

    async def _ready(self, stream: CallStream) -> Status:
        messages.parse(ServerReadyRequest, await stream.read(small=True) or b"", messages.SMALL)
        response = ServerReadyResponse(ready=self._serving[READINESS])
        return Status(message=response.SerializeToString())

    async def _check(self, stream: CallStream) -> Status:
        name = await _service_name(stream)
        if name not in self._serving:
            return Status(grpc.StatusCode.NOT_FOUND, "Unknown service name.")
        return Status(message=self._response(name))

    async def _watch(self, stream: CallStream) -> Status:
        name = await _service_name(stream)
        with self._counted(stream.peer):
            await self._follow(name, stream)
        raise Unavailable("The server is shutting down. Retry on another server.")

    async def _follow(self, name: str, stream: CallStream) -> None:
        """Send the status now and after each change, until the server stops."""
        sent = b""
        while not self._closed:
            changed: Future[None] = Future()
            with self._lock:
                self._watchers.add(changed)
            stream.context.on_cancel(changed)
            response = self._response(name)
            try:
                if response != sent:
                    await stream.write(response)
                    sent = response
                await changed
            finally:  # forget a watch that has ended now, not at the next change
                with self._lock:
                    self._watchers.discard(changed)

    @contextmanager
    def _counted(self, peer: str) -> Iterator[None]:
        """Count a watch of the client at `peer`. Raises Overloaded beyond the limits: a watch needs
        no token and may last for ever."""
        with self._lock:
            here, total = self._watches[peer], self._watches.total()
            if here >= MAX_WATCHES_PER_CONNECTION or total >= MAX_WATCHES:
                what = f"Too many health watches: {here} on this connection, {total} in total"
                raise Overloaded("watches", what, _RETRY_AFTER)
            self._watches[peer] += 1
        try:
            yield
        finally:
            with self._lock:
                self._watches[peer] -= 1
                if not self._watches[peer]:
                    del self._watches[peer]

    def _response(self, name: str) -> bytes:
        if name not in self._serving:
            status = Response.SERVICE_UNKNOWN
        else:
            status = Response.SERVING if self._serving[name] else Response.NOT_SERVING
        message: bytes = Response(status=status).SerializeToString()
        return message


async def _service_name(stream: CallStream) -> str:
    """The service name in a request. The request needs no token, so it must be small."""
    data = await stream.read(small=True)
    request = messages.parse(health_pb2.HealthCheckRequest, data or b"", messages.SMALL)
    return str(request.service)
