"""The HTTP port itself: health, errors, deadlines, disconnects, limits."""

from __future__ import annotations

import http.client
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentd.client import Client
from latentd.http import calls, listener
from latentd.process.server import Server
from tests.support.gate import Gate
from tests.support.server import free_port
from tests.support.web import answer, connected, port, read_all, request

GOOD = "/sample/toy.png?seed=7"
HTTP_GET = f"GET {GOOD} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
ROOT = Path(__file__).resolve().parents[3]


def test_without_the_flag_there_is_no_port_and_no_web_package(toy_bundles):
    # In a process of its own: other tests have imported them here.
    code = f"""
import sys
from collections.abc import Iterator
from pathlib import Path
from tests.support.server import server_starter
with server_starter() as start:
    assert start(Path({str(toy_bundles)!r})).server.http_port is None
print([name for name in ("starlette", "uvicorn", "h11", "latentd.http") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr


def test_health(server):
    for kind in ("live", "ready"):
        found = request(server, f"/v2/health/{kind}")
        assert (found.status, found.json) == (200, {kind: True})
    server.server._set_health(False)
    try:
        found = request(server, "/v2/health/ready")
        assert (found.status, found.json) == (503, {"ready": False})
        assert request(server, "/v2/health/live").status == 200
    finally:
        server.server._set_health(True)


def test_every_response_has_the_headers_that_browsers_need(server):
    for path in (GOOD, "/v2/health/live", "/nothing"):
        headers = request(server, path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["date"]
        assert headers["cache-control"] in ("no-cache", "no-store")
        assert not {"set-cookie", "server", "access-control-allow-origin"} & set(headers)


def test_paths_and_methods_that_are_not_there(server):
    missing = request(server, "/nothing")
    assert (missing.status, missing.error) == (
        404,
        "GET /nothing: Not Found. /docs lists what is here.",
    )
    assert request(server, GOOD, method="DELETE").status == 405


def test_a_call_is_recorded_as_any_other(start_server, toy_bundles, caplog):
    server = start_server(toy_bundles, http_port=0, access_log="all")
    caplog.set_level(logging.INFO)
    found = request(server, GOOD, x_request_id="mine-1")
    assert found.headers["x-request-id"] == "mine-1"
    assert 'rows;desc="1", model;desc="toy/1"' in found.headers["server-timing"]
    assert server.calls("Sample") == 1
    assert any("Sample OK" in r.getMessage() and "mine-1" in r.getMessage() for r in caplog.records)
    bad = request(server, GOOD + "&count=0", x_request_id="mine-2")
    assert (bad.status, bad.headers["x-request-id"]) == (400, "mine-2")
    assert server.metric(
        "latentd_requests_total", method="Sample", model="", code="INVALID_ARGUMENT"
    )


@pytest.mark.parametrize("value", ["", "5", "1s", "123456789S", "-1S", "1.5S", "S"])
def test_a_deadline_that_is_no_duration(server, value):
    found = request(server, GOOD, grpc_timeout=value)
    assert found.status == 400
    assert "grpc-timeout: " in found.error


@pytest.mark.parametrize("value", ["2H", "3M", "10S", "99999m", "99999999u"])
def test_deadlines_in_every_unit(server, value):
    assert request(server, GOOD, grpc_timeout=value).status == 200


@pytest.fixture
def gate(server) -> Iterator[Gate]:
    gate = Gate(server.server.repository.models()[0].decoder)
    yield gate
    gate.remove()


def test_a_deadline_ends_a_call(server, gate):
    found = request(server, GOOD, grpc_timeout="300m")
    assert (found.status, found.error) == (504, "Deadline exceeded.")


def test_a_client_that_leaves_cancels_its_call(server, gate):
    def cancelled() -> float:
        return server.metric("latentd_requests_total", method="Sample", model="", code="CANCELLED")

    before = cancelled()
    with connected(port(server)) as first, connected(port(server)) as second:
        first.sendall(HTTP_GET)
        gate.wait_for_batch()
        second.sendall(HTTP_GET)
        while not server.metric("latentd_queue_rows", graph="decoder", model="toy", version="1"):
            pass
        second.close()
        while cancelled() == before:
            pass
        gate.open()
        assert first.recv(9) == b"HTTP/1.1 "
    assert gate.rows == 1


def test_an_endless_header_ends_the_connection(server):
    with connected(port(server)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nendless: " + b"x" * (64 << 10))
        assert read_all(connection).startswith((b"HTTP/1.1 400 ", b""))
    assert request(server, GOOD).status == 200


def test_nonsense_after_a_request_ends_it_without_an_error_in_the_log(server, gate, caplog):
    head = b"POST /v2/models/toy/infer HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    with connected(port(server)) as connection:
        connection.sendall(head + b"2\r\n{}\r\nnonsense\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")
    gate.open()
    assert request(server, GOOD).status == 200
    assert not [r for r in caplog.records if r.levelname == "ERROR"]


@pytest.mark.parametrize(
    "sent", [b"", b"GET", b"GET / HTTP/1.1\r\nhost: x\r\n", b"GET / HTTP/1.1\r\nhost: x\r\na: b"]
)
def test_a_connection_without_a_whole_request_is_closed(server, monkeypatch, sent):
    monkeypatch.setattr(listener, "REQUEST_SECONDS", 0.1)
    with connected(port(server)) as connection:
        connection.sendall(sent)
        assert read_all(connection) == b""


def test_an_idle_connection_is_closed_and_one_in_use_is_not(server, monkeypatch):
    monkeypatch.setattr(listener, "REQUEST_SECONDS", 0.1)
    connection = http.client.HTTPConnection("127.0.0.1", port(server), timeout=120)
    for _ in range(3):
        connection.request("GET", GOOD)
        assert answer(connection.getresponse()).status == 200
    connection.sock.sendall(b"GET")  # the next request, but it never comes
    assert connection.sock.recv(1) == b""
    connection.close()


def test_more_connections_than_allowed_are_closed_and_calls_go_on(start_server, toy_bundles):
    server = start_server(toy_bundles, http_port=0, max_connections=3)
    number = port(server)
    with connected(number), connected(number), connected(number) as last:
        with connected(number) as more:
            assert read_all(more) == b""
        last.sendall(f"GET {GOOD} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        assert read_all(last).startswith(b"HTTP/1.1 200 ")
        with Client(server.target) as client:
            assert len(client.sample(1)) == 1
    while request(server, GOOD).status != 200:  # those connections are free again
        pass


@pytest.mark.parametrize("shares_port", [False, True])
def test_a_server_starts_again_on_its_port(start_server, toy_bundles, monkeypatch, shares_port):
    number = free_port()
    with monkeypatch.context() as worker:
        worker.setattr(Server, "shares_port", shares_port)
        server = start_server(toy_bundles, http_port=number)
    with connected(number) as connection:
        connection.sendall(HTTP_GET)
        assert connection.recv(1)
        server.stop()  # it closes the connection first, which then lingers
        read_all(connection)
    # Alone, as a supervisor too first binds the port.
    assert request(start_server(toy_bundles, http_port=number), GOOD).status == 200


def test_header_names_of_calls_are_bounded(server):
    found = request(server, GOOD, **{f"x{i}": "y" * 1000 for i in range(20)})
    assert found.status in (400, 429)


def test_timeouts_are_what_the_documentation_says():
    assert (listener.HANDSHAKE_SECONDS, listener.REQUEST_SECONDS) == (10, 10)
    assert (listener.IDLE_SECONDS, calls.BODY_SECONDS) == (75, 300)


def test_slash_too_many_is_not_redirected_to_the_host_of_the_client(server):
    found = request(server, "/v2/", host="evil.example")
    assert (found.status, "location" in found.headers) == (404, False)
