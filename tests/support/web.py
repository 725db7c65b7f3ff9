"""A client of the HTTP port: Python's http.client, and raw sockets for what it would not send."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.server import RunningServer

SECONDS = 120  # only broken code makes a test wait so long


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)

    @property
    def error(self) -> str:
        assert set(self.json) == {"error"}
        return str(self.json["error"])


def port(server: RunningServer) -> int:
    found = server.server.http_port
    assert found
    return found


def request(
    server: RunningServer | int,
    path: str,
    body: bytes | None = None,
    method: str = "",
    **headers: str,
) -> Answer:
    """One request over a connection of its own. headers: _ in their names stands for -."""
    number = server if isinstance(server, int) else port(server)
    connection = http.client.HTTPConnection("127.0.0.1", number, timeout=SECONDS)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, named)
        return answer(connection.getresponse())
    finally:
        connection.close()


def answer(response: http.client.HTTPResponse) -> Answer:
    names = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, names, response.read())


@contextmanager
def connected(number: int) -> Iterator[socket.socket]:
    """A connection for any bytes."""
    with socket.create_connection(("127.0.0.1", number), timeout=SECONDS) as one:
        yield one


def read_all(connection: socket.socket) -> bytes:
    """Until the server closes it."""
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)
