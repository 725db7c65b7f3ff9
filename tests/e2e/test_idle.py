"""Connections that stay silent are closed, so that others can use their places."""

from __future__ import annotations

import socket

import pytest
import trustme

from latentd.client import Client
from latentd.process import server
from tests.support.http2 import PREFACE, Connection, body, call, message

HEALTH = "/grpc.health.v1.Health/Check"
MILLISECONDS = 500


@pytest.fixture(params=["core", "aio"])
def listener(request):
    return request.param


@pytest.mark.parametrize("sent", [b"", PREFACE], ids=["silent", "without settings"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_connection_is_closed_when_its_handshake_does_not_end(
    start_server, toy_bundles, listener, tls, sent, tmp_path, monkeypatch
):
    monkeypatch.setattr(server, "_HANDSHAKE_MS", MILLISECONDS)
    chosen = {}
    if tls:
        issued = trustme.CA().issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(tmp_path / "key")
        issued.cert_chain_pems[0].write_to_path(tmp_path / "cert")
        chosen = {"tls_cert": str(tmp_path / "cert"), "tls_key": str(tmp_path / "key")}
        sent = sent and b"\x16\x03\x01\x02\0\x01\0\x01"  # the start of a ClientHello
    port = int(start_server(toy_bundles, listener=listener, **chosen).target.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=120) as silent:
        silent.sendall(sent)
        while silent.recv(1 << 16):
            pass


def test_idle_connection_is_closed_and_its_client_reconnects(
    start_server, toy_bundles, listener, monkeypatch
):
    monkeypatch.setattr(server, "_IDLE_MS", MILLISECONDS)
    target = start_server(toy_bundles, listener=listener).target
    with Client(target) as client:
        client.sample(1, seed=7)
        with Connection(int(target.rpartition(":")[2])) as connection:
            connection.send(call(1, HEALTH), body(1, message(b"")))
            connection.wait_for(1)
            connection.drain()  # until the server closes it
        assert len(client.sample(1, seed=7)) == 1
