"""The HTTP port: accepts connections, bounds them, and runs uvicorn's HTTP/1.1 on them.

uvicorn's own server would bind, handle signals and tick ten times a second. This one runs in the
event loop that is there, on a socket that workers share, and takes a renewed certificate for each
connection. What uvicorn leaves open is closed here: connections that send no request in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from typing import Any, Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from latentd.transport.handlers import MAX_METADATA_BYTES
from latentd.transport.tls import Certificates

HANDSHAKE_SECONDS: Final = 10.0
REQUEST_SECONDS: Final = 10.0
"""From a connection's first byte, or from a request's, until its headers are complete."""
IDLE_SECONDS: Final = 75
"""Between two requests on one connection."""
STALLED_MS: Final = 20_000
"""The kernel closes a connection whose client takes nothing for so long."""
_WRITE_BUFFER: Final = 16 << 10  # bytes of a response that no call waits for any more
_BACKLOG: Final = 1024
_RETRY_SECONDS: Final = 0.1  # after accept has failed: the process is out of file descriptors


class HttpListener:
    """See `transport.listener.Listener`; this one takes HTTP.

    app: an ASGI application; scope["state"]["connection"] is its request's Connection
    max_connections: more are closed at once
    certificates: for TLS; None: plain text
    """

    def __init__(self, app: Any, max_connections: int, certificates: Certificates | None) -> None:
        self._max_connections, self._certificates = max_connections, certificates
        self._config = uvicorn.Config(
            app,
            access_log=False,  # calls have their own
            date_header=False,
            h11_max_incomplete_event_size=MAX_METADATA_BYTES,
            interface="asgi3",
            lifespan="off",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=IDLE_SECONDS,
            ws="none",
        )
        # Its warnings tell of requests that are not HTTP: any client could fill the log.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._state = ServerState()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._all_closed = asyncio.Event()

    def bind(self, host: str, port: int, shares_port: bool) -> int:
        """Open the port; returns its number, 0 on failure."""
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._socket = socket.socket(family)
            # Connections of a server that has ended linger for a minute; it may start again.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shares_port:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # Connections inherit these.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_MS)
            self._socket.setblocking(False)
            self._socket.bind(address)
            self._socket.listen(_BACKLOG)
        except OSError:
            return 0
        return int(self._socket.getsockname()[1])

    def start(self) -> None:
        """Accept connections. Call it in the event loop that shall run the requests."""
        self._config.load()
        self._accepting = asyncio.create_task(self._accept())

    async def stop(self, grace: float) -> None:
        """Stop accepting, let requests finish for `grace` seconds, end the rest."""
        self._accepting.cancel()
        await asyncio.wait({self._accepting})
        self._socket.close()
        self._all_closed.clear()
        for handshake in self._handshakes:
            handshake.cancel()
        for connection in list(self._state.connections):
            with contextlib.suppress(h11.LocalProtocolError):  # it is closing already
                connection.shutdown()
        with contextlib.suppress(TimeoutError):
            if self._state.connections:
                await asyncio.wait_for(self._all_closed.wait(), grace)
        for connection in list(self._state.connections):
            connection.transport.abort()
        tasks = set(self._state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(self._socket)
            except OSError:
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if len(self._state.connections) + len(self._handshakes) >= self._max_connections:
                accepted.close()
                continue
            handshake = loop.create_task(self._connect(accepted))
            self._handshakes.add(handshake)
            handshake.add_done_callback(self._handshakes.discard)

    async def _connect(self, accepted: socket.socket) -> None:
        context = self._certificates.context() if self._certificates else None
        # The client has gone, or its TLS is not ours.
        with contextlib.suppress(OSError, ssl.SSLError):
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Connection(self._config, self._state, self._all_closed),
                accepted,
                ssl=context,
                ssl_handshake_timeout=HANDSHAKE_SECONDS if context else None,
            )


class Connection(H11Protocol):
    """One connection. It is closed if a request's headers do not arrive in time.

    all_closed: set when the last connection has ended
    """

    def __init__(
        self, config: uvicorn.Config, state: ServerState, all_closed: asyncio.Event
    ) -> None:
        super().__init__(config, state, {})
        self._all_closed = all_closed
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {"connection": self}
        transport.set_write_buffer_limits(_WRITE_BUFFER)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Bytes that are not of a request in progress: of the next one's headers, or of a body that
        # is not read, because the request was answered before its end.
        if self.cycle is None or self.cycle.response_complete:
            self._start_timer()
        else:
            self._stop_timer()

    def send_400_response(self, msg: str) -> None:
        """What follows is not HTTP. A request in progress ends: its response could not be sent."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.abort()
                return
        super().send_400_response(msg)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.app_state = {}
        super().connection_lost(exc)
        if not self.connections:
            self._all_closed.set()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
