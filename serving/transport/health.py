"""grpc.health.v1: who serves, for probes and for clients that balance."""

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
from latentd.transport import messages
from latentd.transport.handlers import Handler, Stream
from latentd.transport.status import Status

Response = health_pb2.HealthCheckResponse

MOST_WATCHES: Final = 4096
"""Some 20 KB of memory each, for as long as their connections last."""
MOST_WATCHES_EACH: Final = 16
"""Over one connection; a gRPC client has one for each service whose health it follows."""
_RETRY_AFTER: Final = 1.0  # seconds


class Health:
    """The status of each service name, and those who watch it."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {}
        self._lock = threading.Lock()
        self._watchers: set[Future[None]] = set()
        self._watches: Counter[str] = Counter()  # by the connection's other end
        self._closed = False

    def set(self, service: str, serving: bool) -> None:
        """Say whether a service serves; tells those who watch."""
        with self._lock:
            self._serving[service] = serving
            watchers, self._watchers = self._watchers, set()
        for watcher in watchers:
            watcher.set_result(None)

    def close(self) -> None:
        """End the watches, which never end by themselves and would hold up a drain."""
        with self._lock:
            self._closed = True
            watchers, self._watchers = self._watchers, set()
        for watcher in watchers:
            watcher.set_result(None)

    def handlers(self) -> dict[str, Handler]:
        """The service's methods by path."""
        service = "/grpc.health.v1.Health/"
        return {
            f"{service}Check": Handler(self._check),
            f"{service}Watch": Handler(self._watch),
        }

    async def _check(self, stream: Stream) -> Status:
        name = await _asked_for(stream)
        if name not in self._serving:
            return Status(grpc.StatusCode.NOT_FOUND, "No service of this name has a health status.")
        return Status(message=self._response(name))

    async def _watch(self, stream: Stream) -> Status:
        name = await _asked_for(stream)
        with self._counted(stream.peer):
            await self._follow(name, stream)
        raise Unavailable("The server is stopping. Another one may answer.")

    async def _follow(self, name: str, stream: Stream) -> None:
        """Send the status now and after each change, until the server stops."""
        said = b""
        while not self._closed:
            changed: Future[None] = Future()
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

    @contextmanager
    def _counted(self, peer: str) -> Iterator[None]:
        """Count a watch over the connection from `peer`. Raises Overloaded where there are enough:
        nobody asks a watch for a token, and it may last for ever."""
        with self._lock:
            each, total = self._watches[peer], self._watches.total()
            if each >= MOST_WATCHES_EACH or total >= MOST_WATCHES:
                what = f"{each} watches of health over this connection and {total} in all are open"
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


async def _asked_for(stream: Stream) -> str:
    """The name of the service whose health is asked for; whoever asks has no token."""
    data = await stream.read(small=True)
    request = messages.parse(health_pb2.HealthCheckRequest, data or b"", messages.SMALL)
    return str(request.service)
