"""The metrics port, which needs no token: threads, memory and time are bounded."""

from __future__ import annotations

import re
import socket
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest

from latentd.process import metrics_server

CONNECTIONS = 4 * metrics_server.MAX_CONNECTIONS
SCRAPE_SECONDS = 0.9 * metrics_server.MAX_CONNECTION_SECONDS  # before other connections end
ROOM = 48 << 20
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: test\r\n"


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "supervisor"])
def process(request, module_serve, toy_bundles):
    return module_serve("--bundles", str(toy_bundles), f"--workers={request.param}")


@pytest.fixture
def page(process) -> str:
    return process.ready()[1]


def connect(page: str) -> socket.socket:
    host, port = re.findall(r"//([^:]+):(\d+)", page)[0]
    return socket.create_connection((host, int(port)), timeout=60)


def scrape(page: str) -> bytes:
    with urllib.request.urlopen(page, timeout=SCRAPE_SECONDS) as response:
        return response.read()


def threads(process) -> int:
    return len(list(Path(f"/proc/{process.pid}/task").iterdir()))


@pytest.mark.parametrize(
    "sent", [b"", REQUEST, REQUEST + b"\r\n"], ids=["silent", "half", "unread"]
)
def test_excess_connections_do_not_block_a_scrape(process, page, sent):
    scrape(page)
    before, memory = threads(process), process.memory("VmRSS")
    with ExitStack() as stack:
        for number in range(CONNECTIONS):
            stack.enter_context(connection := connect(page))
            connection.sendall(sent)
            if number % 20 == 0:
                assert b"latentd_" in scrape(page)
        assert b"latentd_" in scrape(page)
        assert threads(process) - before <= metrics_server.MAX_CONNECTIONS
        assert process.memory("VmRSS") - memory < ROOM


def test_too_long_request_is_closed(page):
    with connect(page) as connection:
        connection.settimeout(SCRAPE_SECONDS)
        connection.sendall(REQUEST + b"X-More: " + b"x" * metrics_server.MAX_REQUEST_BYTES)
        try:
            while connection.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass  # closed before all was read
    assert b"latentd_" in scrape(page)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", REQUEST], ids=["silent", "half"])
def test_idle_connection_is_closed(page, sent):
    with connect(page) as connection:
        connection.sendall(sent)
        connection.settimeout(metrics_server.MAX_CONNECTION_SECONDS + 5)
        while connection.recv(1 << 16):
            pass
