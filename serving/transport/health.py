"""grpc.health.v1: who serves, for probes and for clients that balance."""

from __future__ import annotations

import threading

import grpc
from grpc_health.v1 import health_pb2

from serving.batching.tasks import Reply
from serving.errors import NotReady
from serving.transport.statuses import Status
from serving.transport.wire import Handler, Stream

Response = health_pb2.HealthCheckResponse


class Health:
    """The status of each service name, and those who watch it."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {}
        self._lock = threading.Lock()
        self._watchers: set[Reply[None]] = set()
        self._closed = False

    def set(self, service: str, serving: bool) -> None:
        """Say whether a service serves; tells those who watch."""
        with self._lock:
            self._serving[service] = serving
            watchers, self._watchers = self._watchers, set()
        for watcher in watchers:
            watcher.resolve(None)

    def close(self) -> None:
        """End the watches, which never end by themselves and would hold up a drain."""
        with self._lock:
            self._closed = True
            watchers, self._watchers = self._watchers, set()
        for watcher in watchers:
            watcher.resolve(None)

    def handlers(self) -> dict[str, Handler]:
        """The service's methods by path."""
        service = "/grpc.health.v1.Health/"
        return {
            f"{service}Check": Handler(self._check),
            f"{service}Watch": Handler(self._watch),
        }

    async def _check(self, stream: Stream) -> Status:
        name = health_pb2.HealthCheckRequest.FromString(await stream.read() or b"").service
        if name not in self._serving:
            return Status(grpc.StatusCode.NOT_FOUND, "No service of this name has a health status.")
        return Status(message=self._response(name))

    async def _watch(self, stream: Stream) -> Status:
        name = health_pb2.HealthCheckRequest.FromString(await stream.read() or b"").service
        said = b""
        while not self._closed:
            changed: Reply[None] = Reply()
            with self._lock:
                self._watchers.add(changed)
            stream.caller.on_cancel(changed)
            response = self._response(name)
            try:
                if response != said:
                    await stream.write(response)
                    said = response
                await changed
            finally:  # a watcher that has left is not to be remembered until the next change
                with self._lock:
                    self._watchers.discard(changed)
        raise NotReady("The server is stopping. Another one may answer.")

    def _response(self, name: str) -> bytes:
        if name not in self._serving:
            status = Response.SERVICE_UNKNOWN
        else:
            status = Response.SERVING if self._serving[name] else Response.NOT_SERVING
        message: bytes = Response(status=status).SerializeToString()
        return message
