"""Floods of frames, calls and connections: other clients are served, and memory stays bounded."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable

import pytest

from latentd.client import Client
from latentd.errors import LatentdError
from latentd.pb import vae_pb2 as pb
from tests.support import http2
from tests.support.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    RST_STREAM,
    Connection,
    block,
    body,
    call,
    frame,
    message,
)

OK = 0
MIB = 1 << 20
ROOM = 96 * MIB  # limit for the memory of idle connections
SAMPLE = "/vae.v1.VaeService/Sample"
GOOD = message(pb.SampleRequest(count=1, seed=7).SerializeToString())


def rapid_reset(connection: Connection) -> None:
    """20,000 calls, each canceled at once."""
    for first in range(1, 40_001, 200):
        streams = range(first, first + 200, 2)
        cancel = struct.pack(">I", 8)
        if not connection.send(
            *(call(s, SAMPLE) + body(s, GOOD) + frame(RST_STREAM, 0, s, cancel) for s in streams)
        ):
            return


def watches(connection: Connection) -> None:
    """20,000 watches of health, each canceled at once."""
    for first in range(1, 40_001, 200):
        streams = range(first, first + 200, 2)
        empty, cancel = message(b""), struct.pack(">I", 8)
        path = "/grpc.health.v1.Health/Watch"
        if not connection.send(
            *(call(s, path) + body(s, empty) + frame(RST_STREAM, 0, s, cancel) for s in streams)
        ):
            return


def many(flood: bytes, times: int) -> Callable[[Connection], None]:
    def send(connection: Connection) -> None:
        for _ in range(times):
            if not connection.send(flood * 1000):
                return

    return send


def endless_headers(connection: Connection) -> None:
    """64 MiB of headers of one call, without an end."""
    piece = block([(b"x-more", b"x" * 8000)]) * 2
    connection.send(frame(HEADERS, 0, 1, piece))
    for _ in range(64 * MIB // len(piece)):
        if not connection.send(frame(CONTINUATION, 0, 1, piece)):
            return


def header_bomb(connection: Connection) -> None:
    """A header of 4 KB in the table, repeated 16,000 times per frame: 64 MiB each."""
    remembered = b"\x40" + b"\x01x" + b"\x7f\xa1\x1e" + b"x" * 4000
    connection.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, remembered + b"\xbe" * 12_000))
    for stream in range(3, 21, 2):
        connection.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, b"\xbe" * 16_000))


FLOODS = {
    "rapid reset": rapid_reset,
    "watches of health": watches,
    "settings": many(http2.settings({4: 65535}), 20),
    "pings": many(frame(PING, 0, 0, bytes(8)), 20),
    "empty data": many(frame(DATA, 0, 1, b""), 20),
    "window updates": many(http2.window(0, 1), 20),
    "headers without end": endless_headers,
    "a bomb of headers": header_bomb,
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
def test_server_survives_a_flood_and_serves_others(port, flood):
    with Connection(port) as connection, Connection(port) as other:
        connection.socket.settimeout(60)
        other.send(call(1, SAMPLE), body(1, GOOD))
        flood(connection)
        other.send(call(3, SAMPLE), body(3, GOOD))
        assert [got.status for got in other.wait_for(1, 3)] == [OK, OK]


def test_500_idle_connections_do_not_block_others(watched, port):
    before = watched.memory("VmRSS")
    idle = [Connection(port) for _ in range(400)]
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    with Connection(port) as other:
        other.send(call(1, SAMPLE), body(1, GOOD))
        assert other.wait_for(1)[0].status == OK
    assert watched.memory("VmRSS") - before < ROOM
    for connection in idle:
        connection.socket.close()
    for one in silent:
        one.close()


HANGING_ROOM = 224 * MIB  # 30,000 calls would take about 600
HANGING = {
    "watches": ("/grpc.health.v1.Health/Watch", True),
    "checks without a request": ("/grpc.health.v1.Health/Check", False),
    "samples without a request": (SAMPLE, False),
}


@pytest.mark.parametrize(("path", "whole"), HANGING.values(), ids=HANGING.keys())
def test_calls_that_never_end_do_not_block_others(watched, path, whole, record_property):
    target, _ = watched.ready()
    port = int(target.rpartition(":")[2])
    watched.answer()
    before = watched.memory("VmRSS")

    def hang(connection: Connection) -> None:
        for stream in range(1, 2000, 2):
            sent = call(stream, path) + (body(stream, message(b"")) if whole else b"")
            if not connection.send(sent):
                return

    connections = [Connection(port) for _ in range(30)]
    threads = [threading.Thread(target=hang, args=(one,)) for one in connections]
    for thread in threads:
        thread.start()
    calls = lost = in_a_row = 0
    with Client(target, timeout=30) as client:
        # During the burst gRPC rejects some calls at random; after it, it rejects none.
        while any(thread.is_alive() for thread in threads) or in_a_row < 20:
            try:
                calls += 1
                assert len(client.sample(1, seed=7)) == 1
                in_a_row += 1
            except LatentdError:
                lost, in_a_row = lost + 1, 0
    taken = (watched.memory("VmRSS") - before) >> 20
    record_property("figures", f"{taken} MiB; of {calls} other calls {lost} lost in the burst")
    watched.answer()
    assert watched.memory("VmRSS") - before < HANGING_ROOM
    for one in connections:
        one.socket.close()


def test_streams_of_one_connection_are_limited(port):
    # Calls that never send their message: without a limit the server would keep all of them.
    with Connection(port) as connection:
        connection.send(call(1, SAMPLE), body(1, GOOD))
        connection.wait_for(1)
        connection.send(*(call(3 + 2 * i, SAMPLE) for i in range(1024 + 50)))
        late = [3 + 2 * i for i in range(1024, 1024 + 50)]
        assert {got.reset for got in connection.wait_for(*late)} == {7}  # REFUSED_STREAM
