"""Callers that are killed in the middle of their calls, and more callers than there is room for."""

from __future__ import annotations

import socket
import struct

import pytest

from latentd.pb import vae_pb2 as pb
from tests.support.http2 import Connection, body, call, message

MIB = 1 << 20
CLIENTS = 1000
AT_ONCE = 100
ROOM = 16 * MIB  # by which memory may differ after nine tenths of them
SAMPLE = "/vae.v1.VaeService/Sample"
STREAM = "/vae.v1.VaeService/StreamSamples"
ONE = message(pb.SampleRequest(count=1, seed=7).SerializeToString())
ENDLESS = message(pb.StreamSamplesRequest(count=10**9, seed=7).SerializeToString())
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST, as the kernel does for the killed
GAUGES = ("latentd_queue_rows", "latentd_unsent_response_bytes", "latentd_unloading_versions")


def killed(port: int) -> None:
    """A client with an endless stream, a call begun and a message begun, that is no more."""
    connection = Connection(port)
    begun = call(5, SAMPLE) + body(5, ONE[:-1], end=False)
    connection.send(call(1, STREAM) + body(1, ENDLESS), call(3, SAMPLE) + body(3, ONE), begun)
    connection.wait_for(3)  # the stream is under way as well
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connection.socket.close()


@pytest.mark.parametrize("listener", ["core", "aio"])
def test_a_thousand_clients_killed_mid_call_leave_nothing(
    serve, toy_bundles, listener, record_property
):
    process = serve("--bundles", str(toy_bundles), "--workers=1", f"--listener={listener}")
    target, _ = process.ready()
    port = int(target.rpartition(":")[2])
    before = 0
    for number in range(CLIENTS):
        if number == AT_ONCE:
            before = process.memory("VmRSS")
        killed(port)
    with Connection(port) as connection:
        stream = 1
        while any(process.value(gauge) for gauge in GAUGES):  # until it has heard of the last ones
            connection.send(call(stream, SAMPLE) + body(stream, ONE))
            connection.wait_for(stream)
            stream += 2
    after = process.memory("VmRSS")
    record_property("figures", f"{CLIENTS} killed: {before >> 20} MiB, then {after >> 20}")
    assert after - before < ROOM


def test_connections_beyond_the_limit_are_not_accepted_and_leave_room_when_they_go(
    serve, toy_bundles
):
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
    while True:  # the server hears of it in its own time
        with Connection(port) as connection:
            if answered(connection):
                break
