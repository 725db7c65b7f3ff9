"""The page of metrics, over HTTP for Prometheus.

Anybody may connect, and no token is asked for. So a connection has seconds for all it does, a
request few bytes, and of too many connections the oldest is closed to make room.
"""

from __future__ import annotations

import io
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from latentd.errors import ConfigError

log = logging.getLogger(__name__)

SECONDS: Final = 10.0
"""That a connection may last; a scrape takes milliseconds."""
MOST_CONNECTIONS: Final = 32
"""At a time, a thread each."""
MOST_REQUEST_BYTES: Final = 16_384
_LOOK_SECONDS: Final = 0.5  # from one look at the connections' age to the next


def expose(registry: CollectorRegistry, host: str, port: int) -> tuple[int, Callable[[], None]]:
    """Open the page; returns its port and what closes it. Raises ConfigError if it cannot."""
    try:
        http = _Page(host, port, registry)
    except socket.gaierror as error:
        raise ConfigError(
            f"--host {host} is no address of this machine: {error.strerror}. "
            "Name one, without brackets; 0.0.0.0 is every interface, :: with IPv6 too."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"The metrics port {port} cannot be opened: {error.strerror}. "
            "Choose another with --metrics-port (0: any free one)."
        ) from None
    work = threading.Thread(
        target=http.serve_forever, args=(_LOOK_SECONDS,), name="metrics", daemon=True
    )
    work.start()

    def close() -> None:
        http.shutdown()
        http.server_close()

    return http.server_port, close


class _Request(WSGIRequestHandler):
    """One request, of few bytes, and the end of its connection."""

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_Few(self.connection))

    def parse_request(self) -> bool:
        # To a request cut off by a hang-up a page would be made as to a whole one.
        page: Any = self.server
        return super().parse_request() and page.is_open(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        """Not logged: a line for each scrape tells nothing, and anybody could make millions."""


class _Few(io.RawIOBase):
    """What comes over a connection, until it has been enough: then it seems to have ended."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._left = connection, MOST_REQUEST_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._connection.recv_into(memoryview(buffer)[: self._left]) if self._left else 0
        self._left -= count
        return count


class _Page(ThreadingMixIn, WSGIServer):
    """Answers each connection in a thread of its own, for SECONDS at the most."""

    daemon_threads = True
    block_on_close = False  # their threads end with the process, whatever their callers do
    request_queue_size = 128

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, *_, address = infos[0]
        self._changed, self._answering = threading.Condition(), 0
        self._open: dict[socket.socket, float] = {}  # since when, the oldest first
        super().__init__(address, _Request)  # type: ignore[arg-type]  # IPv6 has four parts
        self.set_app(make_wsgi_app(registry))

    # In the server's thread.

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            while self._answering >= MOST_CONNECTIONS:
                if self._open:
                    self._hang_up(next(iter(self._open)))
                self._changed.wait(_LOOK_SECONDS)
            self._open[request] = time.monotonic()
            self._answering += 1
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        with self._changed:
            since = time.monotonic() - SECONDS
            for connection in [one for one, began in self._open.items() if began < since]:
                self._hang_up(connection)

    def _hang_up(self, connection: socket.socket) -> None:
        """End what its thread waits for; the thread closes it."""
        del self._open[connection]
        with suppress(OSError):  # its caller was faster
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
            self._answering -= 1
            self._changed.notify()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Nothing is logged that any caller could cause millions of times.
        if not isinstance(sys.exception(), OSError):
            log.exception("The page of metrics failed.")
