"""Serves the metrics over HTTP for Prometheus, and health for probes.

The port asks for no token, so any client may connect. Therefore a connection lasts a few seconds at
most, a request has few bytes, and of too many connections the oldest is closed.
"""

from __future__ import annotations

import io
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from latentd.errors import ConfigError
from latentd.transport.health import LIVENESS, READINESS, STARTUP

log = logging.getLogger(__name__)

HEALTH_PATHS: Final = {
    "/livez": LIVENESS,
    "/readyz": READINESS,
    "/startupz": STARTUP,
}
"""The service of grpc.health.v1 whose status each path tells."""
MAX_CONNECTION_SECONDS: Final = 10.0
"""How long a connection may last; a scrape takes milliseconds."""
MAX_CONNECTIONS: Final = 32
"""Connections at a time; each has a thread."""
MAX_REQUEST_BYTES: Final = 16_384
_POLL_SECONDS: Final = 0.5  # between checks of the connections' age


def expose(
    registry: CollectorRegistry, is_serving: Callable[[str], bool], host: str, port: int
) -> tuple[int, Callable[[], None]]:
    """Start to serve; returns the port and a function that stops it. Raises ConfigError.

    is_serving: whether a service of HEALTH_PATHS serves; called in threads of the connections.
    """
    try:
        http = _MetricsServer(host, port, _app(registry, is_serving))
    except socket.gaierror as error:
        raise ConfigError(
            f"--host {host} cannot be resolved: {error.strerror}. Set an address of this machine, "
            "without brackets; 0.0.0.0 is every interface, :: includes IPv6."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on metrics port {port}: {error.strerror}. "
            "Choose another with --metrics-port (0: any free port)."
        ) from None
    work = threading.Thread(
        target=http.serve_forever, args=(_POLL_SECONDS,), name="metrics", daemon=True
    )
    work.start()

    def close() -> None:
        http.shutdown()
        http.server_close()

    return http.server_port, close


def _app(registry: CollectorRegistry, is_serving: Callable[[str], bool]) -> WSGIApplication:
    metrics: WSGIApplication = make_wsgi_app(registry)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return metrics(environ, start_response)
        if path not in HEALTH_PATHS:
            # A probe whose path is mistyped must fail.
            status, text = "404 Not Found", f"Try /metrics, {', '.join(HEALTH_PATHS)}."
        elif is_serving(HEALTH_PATHS[path]):
            status, text = "200 OK", "SERVING"
        else:
            status, text = "503 Service Unavailable", "NOT_SERVING"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{text}\n".encode()]

    return app


class _Request(WSGIRequestHandler):
    """One short request; its connection is closed after it."""

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_LimitedReader(self.connection))

    def parse_request(self) -> bool:
        # A request cut off by `_shut_down` must not get a response as a complete one does.
        server: Any = self.server
        return super().parse_request() and server.is_open(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        """Do nothing: a line for each scrape is useless, and clients could cause millions."""


class _LimitedReader(io.RawIOBase):
    """A connection's input, which ends after MAX_REQUEST_BYTES."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._remaining = connection, MAX_REQUEST_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = (
            self._connection.recv_into(memoryview(buffer)[: self._remaining])
            if self._remaining
            else 0
        )
        self._remaining -= count
        return count


class _MetricsServer(ThreadingMixIn, WSGIServer):
    """Serves each connection in a thread, for at most MAX_CONNECTION_SECONDS."""

    daemon_threads = True
    block_on_close = False  # clients cannot keep the process from exiting
    request_queue_size = 128

    def __init__(self, host: str, port: int, app: WSGIApplication) -> None:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, *_, address = infos[0]
        self._changed, self._active = threading.Condition(), 0
        self._open: dict[socket.socket, float] = {}  # and since when, the oldest first
        super().__init__(address, _Request)  # type: ignore[arg-type]  # IPv6 has four parts
        self.set_app(app)

    # In the server's thread.

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            while self._active >= MAX_CONNECTIONS:
                if self._open:
                    self._shut_down(next(iter(self._open)))
                self._changed.wait(_POLL_SECONDS)
            self._open[request] = time.monotonic()
            self._active += 1
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        with self._changed:
            since = time.monotonic() - MAX_CONNECTION_SECONDS
            for connection in [one for one, began in self._open.items() if began < since]:
                self._shut_down(connection)

    def _shut_down(self, connection: socket.socket) -> None:
        """End what its thread waits for; the thread closes it."""
        del self._open[connection]
        with suppress(OSError):  # the client has closed it
            connection.shutdown(socket.SHUT_RDWR)

    # In the connection's thread.

    def is_open(self, request: socket.socket) -> bool:
        with self._changed:
            return request in self._open

    def shutdown_request(self, request: Any) -> None:
        with self._changed:
            self._open.pop(request, None)
        super().shutdown_request(request)
        with self._changed:
            self._active -= 1
            self._changed.notify()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Do not log what any client could cause millions of times.
        if not isinstance(sys.exception(), OSError):
            log.exception("Unhandled error in the metrics server.")
