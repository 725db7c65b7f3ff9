"""Callers that ask and never read: what their answers take is bounded, and others are answered."""

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
ROWS = 12_500  # with their latents 1 MB: 2 of memory as one answer, 4 as a stream's
CALLS = 125  # over each connection
CONNECTIONS = 4
MOST = 32 * MIB  # of answers
ROOM = 256 * MIB  # beyond what it had before: a sixth of what all would take
INITIAL_WINDOW, TABLE, TRUE_BINARY = 4, 1, 0xFE03

ASKED = {
    "answers": pb.SampleRequest(count=ROWS, seed=7, include_z=True),
    "streams": pb.StreamSamplesRequest(count=10**9, chunk_rows=ROWS, seed=7, include_z=True),
}


@pytest.fixture(params=["core", "aio"])
def process(request, serve, toy_bundles):
    limits = {
        "max-rows": ROWS,
        "queue-rows": 10**8,
        "queue-mib": 4096,
        "max-unsent-response-mib": MOST // MIB,
    }
    flags = [f"--{name}={limit}" for name, limit in limits.items()]
    flags += ["--workers=1", f"--listener={request.param}"]
    return serve(
        "--bundles", str(toy_bundles), "--workers", "1", "--listener", request.param, *flags
    )


def ask(
    port: int, asked: pb.SampleRequest | pb.StreamSamplesRequest, calls: int = CALLS
) -> Connection:
    """Calls over a connection whose windows never open; its statuses still come."""
    path = f"/vae.v1.VaeService/{type(asked).__name__.removesuffix('Request')}"
    return begin(port, path, asked.SerializeToString(), calls)


def begin(port: int, path: str, request: bytes, calls: int) -> Connection:
    connection = Connection(port, preface=False)
    closed = http2.settings({INITIAL_WINDOW: 0, TABLE: 0, TRUE_BINARY: 1})
    data = message(request)
    connection.send(http2.PREFACE, closed)
    for stream in range(1, 2 * calls, 2):
        connection.send(call(stream, path) + body(stream, data))
    return connection


@pytest.mark.slow
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED.keys())
def test_answers_that_nobody_reads_take_bounded_memory_and_nobodys_place(process, asked):
    target, _ = process.ready()
    before = process.memory("VmRSS")
    fitting = MOST // (2 * MIB)
    with ExitStack() as mute, grpc.insecure_channel(target) as channel, Client(target) as client:
        for _ in range(CONNECTIONS):
            mute.enter_context(ask(int(target.rpartition(":")[2]), asked))
        health = health_pb2_grpc.HealthStub(channel)
        while process.value("latentd_responses_dropped_total") < CONNECTIONS * CALLS - fitting:
            assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1
            assert len(client.sample(1, seed=7)) == 1
            assert process.memory("VmRSS") - before < ROOM
    assert process.memory("VmHWM") - before < ROOM


def test_a_caller_who_lets_its_answer_wait_is_told_why_it_lost_it(serve, toy_bundles):
    flags = f"--workers=1 --listener=core --max-rows={ROWS} --queue-rows={10**8}"
    flags += " --max-unsent-response-mib=1"
    target, _ = serve("--bundles", str(toy_bundles), *flags.split()).ready()
    with ask(int(target.rpartition(":")[2]), ASKED["answers"]) as connection:
        (first,) = connection.wait_for(1)
    assert first.status == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert b"Response dropped" in first.headers[b"grpc-message"]


@pytest.mark.parametrize("listener", ["core", "aio"])
def test_small_answers_that_nobody_reads_count_with_their_calls(serve, toy_bundles, listener):
    # Streams of one row a message, and checks of health, for which no token is asked.
    flags = f"--workers=1 --listener={listener} --max-unsent-response-mib=8"
    process = serve("--bundles", str(toy_bundles), *flags.split())
    target, _ = process.ready()
    port = int(target.rpartition(":")[2])
    process.answer()
    before, most = process.memory("VmRSS"), 8 * MIB
    stream = pb.StreamSamplesRequest(count=10**9, chunk_rows=1, seed=7)
    with ExitStack() as mute, grpc.insecure_channel(target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for asked in ("streams", "checks") * 2:
            if asked == "streams":
                mute.enter_context(ask(port, stream, 1000))
            else:
                mute.enter_context(begin(port, "/grpc.health.v1.Health/Check", b"", 100))
            assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1
        while process.value("latentd_responses_dropped_total") < 2000 - most / CALL_BYTES:
            assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1
        assert process.value("latentd_unsent_response_bytes") <= 2 * most
        assert process.memory("VmHWM") - before < 64 * MIB  # 2,200 calls took more
