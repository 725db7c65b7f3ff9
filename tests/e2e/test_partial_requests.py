"""Clients that never complete their requests: memory is bounded, and others are served."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentd.client import Client
from tests.support.http2 import Connection, call, message

MIB = 1 << 20
CONNECTIONS, CALLS = 4, 64
MAX_MESSAGE = 4 * MIB  # all of them together would take 1 GiB
LIMIT = 32 * MIB  # for partial requests
ROOM = 512 * MIB  # above its memory before: on a busy machine much arrives between two checks
METHODS = ["/vae.v1.VaeService/Encode", "/vae.v1.VaeService/StreamReconstruct"]
HEALTH = "/grpc.health.v1.Health/Check"


@pytest.fixture(params=["core", "aio"])
def process(request, serve, toy_bundles):
    limits = (
        f"--max-message-mib={MAX_MESSAGE // MIB} --max-partial-request-mib={LIMIT // MIB}".split()
    )
    flags = (*limits, "--workers=1", f"--listener={request.param}")
    return serve("--bundles", str(toy_bundles), *flags)


def begin(connection: Connection, path: str) -> list[int]:
    """Start calls with all of a message but its last bytes; returns their streams."""
    streams = list(range(1, 2 * CALLS, 2))
    connection.send(*(call(s, path) for s in streams))
    partial = message(bytes(MAX_MESSAGE - 100), length=MAX_MESSAGE - 50)
    connection.pour(dict.fromkeys(streams, partial))
    return streams


@pytest.mark.parametrize("path", [*METHODS, HEALTH], ids=lambda path: path.rpartition("/")[2])
def test_partial_requests_take_bounded_memory_and_others_are_served(process, path):
    target, _ = process.ready()
    process.forget_peak()
    before = process.memory("VmRSS")
    with ExitStack() as stack:
        port = int(target.rpartition(":")[2])
        connections = [stack.enter_context(Connection(port)) for _ in range(CONNECTIONS)]
        threads = [threading.Thread(target=begin, args=(c, path)) for c in connections]
        health = health_pb2_grpc.HealthStub(stack.enter_context(grpc.insecure_channel(target)))
        client = stack.enter_context(Client(target))
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert health.Check(health_pb2.HealthCheckRequest(), timeout=120).status == 1
            assert len(client.sample(1, seed=7)) == 1
        ends = [a for c in connections for a in c.answers.values() if a.ended]
    peak = process.memory("VmHWM") - before
    print(f"{len(ends)} of {CONNECTIONS * CALLS} dropped, peak {peak >> 20} MiB")
    assert peak < ROOM
    # The others fit, together with those that arrived after the last check.
    assert len(ends) > CONNECTIONS * CALLS / 2
    assert process.value("latentd_partial_requests_dropped_total") >= len(ends)
    for end in ends:
        assert end.status == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert b"not received completely" in end.headers[b"grpc-message"]
        info = error_details_pb2.RetryInfo()
        assert end.rich.details[0].Unpack(info)
        assert info.retry_delay.ToMilliseconds() > 0


@pytest.mark.slow
@pytest.mark.parametrize("calls", [0, 1], ids=["idle", "with a call"])
def test_connection_is_closed_when_its_client_is_unreachable(serve, toy_bundles, calls):
    target, _ = serve("--bundles", str(toy_bundles), "--workers", "1").ready()
    with Connection(int(target.rpartition(":")[2])) as connection:
        connection.send(call(1, METHODS[0], end=True))
        connection.wait_for(1)
        connection.send(*(call(3, METHODS[0]) for _ in range(calls)))
        connection.socket.settimeout(80)  # it takes 50 s
        while connection.socket.recv(1 << 16):  # nothing is answered, not even pings
            pass
