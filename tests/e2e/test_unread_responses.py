"""Clients that never read their responses: memory is bounded, and others are served."""

from __future__ import annotations

from contextlib import ExitStack

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentd.client import Client
from latentd.pb import vae_pb2 as pb
from latentd.transport.response_memory import CALL_BYTES
from tests.support import http2
from tests.support.http2 import Connection, body, call, message

MIB = 1 << 20
ROWS = 12_500  # 1 MB with their latents: 2 MB of memory in a unary response, 4 MB in a stream
CALLS = 125  # per connection
CONNECTIONS = 4
LIMIT = 32 * MIB  # for unread responses
ROOM = 256 * MIB  # above its memory before: a sixth of what all responses would take
INITIAL_WINDOW, TABLE, TRUE_BINARY = 4, 1, 0xFE03

REQUESTS = {
    "unary": pb.SampleRequest(count=ROWS, seed=7, include_z=True),
    "streams": pb.StreamSamplesRequest(count=10**9, chunk_rows=ROWS, seed=7, include_z=True),
}


@pytest.fixture(params=["core", "aio"])
def process(request, serve, toy_bundles):
    limits = {
        "max-rows": ROWS,
        "queue-rows": 10**8,
        "queue-mib": 4096,
        "max-unsent-response-mib": LIMIT // MIB,
    }
    flags = [f"--{name}={limit}" for name, limit in limits.items()]
    flags += ["--workers=1", f"--listener={request.param}"]
    return serve(
        "--bundles", str(toy_bundles), "--workers", "1", "--listener", request.param, *flags
    )


def start_calls(
    port: int, request: pb.SampleRequest | pb.StreamSamplesRequest, calls: int = CALLS
) -> Connection:
    """Start calls over a connection whose windows never open; statuses still arrive."""
    path = f"/vae.v1.VaeService/{type(request).__name__.removesuffix('Request')}"
    return start_raw_calls(port, path, request.SerializeToString(), calls)


def start_raw_calls(port: int, path: str, request: bytes, calls: int) -> Connection:
    connection = Connection(port, preface=False)
    closed = http2.settings({INITIAL_WINDOW: 0, TABLE: 0, TRUE_BINARY: 1})
    data = message(request)
    connection.send(http2.PREFACE, closed)
    for stream in range(1, 2 * calls, 2):
        connection.send(call(stream, path) + body(stream, data))
    return connection


@pytest.mark.slow
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())
def test_unread_responses_take_bounded_memory_and_others_are_served(process, request_):
    target, _ = process.ready()
    before = process.memory("VmRSS")
    fitting = LIMIT // (2 * MIB)
    with ExitStack() as silent, grpc.insecure_channel(target) as channel, Client(target) as client:
        for _ in range(CONNECTIONS):
            silent.enter_context(start_calls(int(target.rpartition(":")[2]), request_))
        health = health_pb2_grpc.HealthStub(channel)
        while process.value("latentd_responses_dropped_total") < CONNECTIONS * CALLS - fitting:
            assert health.Check(health_pb2.HealthCheckRequest(), timeout=120).status == 1
            assert len(client.sample(1, seed=7)) == 1
            assert process.memory("VmRSS") - before < ROOM
    assert process.memory("VmHWM") - before < ROOM


def test_client_learns_why_its_unread_response_was_dropped(serve, toy_bundles):
    flags = f"--workers=1 --listener=core --max-rows={ROWS} --queue-rows={10**8}"
    flags += " --max-unsent-response-mib=1"
    target, _ = serve("--bundles", str(toy_bundles), *flags.split()).ready()
    with start_calls(int(target.rpartition(":")[2]), REQUESTS["unary"]) as connection:
        (first,) = connection.wait_for(1)
    assert first.status == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert b"Response dropped" in first.headers[b"grpc-message"]


@pytest.mark.parametrize("listener", ["core", "aio"])
def test_small_unread_responses_count_with_their_calls(serve, toy_bundles, listener):
    # Streams of one row per message, and health checks, which need no token.
    flags = f"--workers=1 --listener={listener} --max-unsent-response-mib=8"
    process = serve("--bundles", str(toy_bundles), *flags.split())
    target, _ = process.ready()
    port = int(target.rpartition(":")[2])
    process.answer()
    before, limit = process.memory("VmRSS"), 8 * MIB
    stream = pb.StreamSamplesRequest(count=10**9, chunk_rows=1, seed=7)
    with ExitStack() as silent, grpc.insecure_channel(target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for kind in ("streams", "checks") * 2:
            if kind == "streams":
                silent.enter_context(start_calls(port, stream, 1000))
            else:
                silent.enter_context(
                    start_raw_calls(port, "/grpc.health.v1.Health/Check", b"", 100)
                )
            assert health.Check(health_pb2.HealthCheckRequest(), timeout=120).status == 1
        while process.value("latentd_responses_dropped_total") < 2000 - limit / CALL_BYTES:
            assert health.Check(health_pb2.HealthCheckRequest(), timeout=120).status == 1
        assert process.value("latentd_unsent_response_bytes") <= 2 * limit
        assert process.memory("VmHWM") - before < 64 * MIB  # 2,200 calls took more
