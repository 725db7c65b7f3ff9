"""Clients killed during their calls, and more clients than the connection limit."""

from __future__ import annotations

import socket
import struct

import pytest

from latentd.pb import vae_pb2 as pb
from tests.support.http2 import Connection, body, call, message

MIB = 1 << 20
CLIENTS = 1000
AT_ONCE = 100
ROOM = 16 * MIB  # memory may grow by this during the last nine tenths
SAMPLE = "/vae.v1.VaeService/Sample"
STREAM = "/vae.v1.VaeService/StreamSamples"
ONE = message(pb.SampleRequest(count=1, seed=7).SerializeToString())
ENDLESS = message(pb.StreamSamplesRequest(count=10**9, seed=7).SerializeToString())
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST, as the kernel does for the killed
GAUGES = ("latentd_queue_rows", "latentd_unsent_response_bytes", "latentd_unloading_versions")


def connect_and_die(port: int) -> None:
    """A client that dies with an endless stream, a call and a partial message."""
    connection = Connection(port)
    partial = call(5, SAMPLE) + body(5, ONE[:-1], end=False)
    connection.send(call(1, STREAM) + body(1, ENDLESS), call(3, SAMPLE) + body(3, ONE), partial)
    connection.wait_for(3)  # the stream has started too
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connection.socket.close()


@pytest.mark.parametrize("listener", ["core", "aio"])
def test_thousand_killed_clients_leave_nothing(serve, toy_bundles, listener, record_property):
    process = serve("--bundles", str(toy_bundles), "--workers=1", f"--listener={listener}")
    target, _ = process.ready()
    port = int(target.rpartition(":")[2])
    before = 0
    for number in range(CLIENTS):
        if number == AT_ONCE:
            before = process.memory("VmRSS")
        connect_and_die(port)
    with Connection(port) as connection:
        stream = 1
        while any(process.value(gauge) for gauge in GAUGES):  # until it has noticed the last ones
            connection.send(call(stream, SAMPLE) + body(stream, ONE))
            connection.wait_for(stream)
            stream += 2
    after = process.memory("VmRSS")
    record_property("figures", f"{CLIENTS} killed: {before >> 20} MiB, then {after >> 20}")
    assert after - before < ROOM


def test_connections_beyond_the_limit_are_accepted_when_others_close(serve, toy_bundles):
    flags = ("--workers=1", "--max-connections=20")
    target, _ = serve("--bundles", str(toy_bundles), *flags).ready()
    port = int(target.rpartition(":")[2])

    def answered(connection: Connection) -> bool:
        connection.send(call(1, SAMPLE), body(1, ONE))
        while 1 not in connection.answers or not connection.answers[1].ended:
            if not connection.read():
                return False
        return connection.answers[1].status == 0

    connections = [Connection(port) for _ in range(30)]
    assert sum(map(answered, connections)) == 20
    for connection in connections:
        connection.socket.close()
    while True:  # the server takes time to notice it
        with Connection(port) as connection:
            if answered(connection):
                break
