"""Health over the wire: what is asked of it leaves nothing behind."""

from __future__ import annotations

import gzip
import itertools
import zlib

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentd.transport import health
from latentd.transport.messages import SMALL

PATIENCE = 2000  # calls that a server may need to hear of a cancellation


def test_a_watch_that_is_left_is_forgotten(server):
    watchers = server.server._health._watchers
    with grpc.insecure_channel(server.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [
            stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(health.MOST_WATCHES_EACH)
        ]
        for watch in watches:
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        for watch in watches:
            watch.cancel()
        for _ in range(PATIENCE):
            stub.Check(health_pb2.HealthCheckRequest())  # time passes
            if not watchers:
                return
    pytest.fail(f"{len(watchers)} watches are remembered")


def connections(target):
    """Stubs, each over a connection of its own."""
    for number in itertools.count():
        yield health_pb2_grpc.HealthStub(grpc.insecure_channel(target, [("number", number)]))


def refused(watch) -> bool:
    try:
        next(watch)
    except grpc.RpcError as error:
        return "watches of health" in error.details()
    return False


def test_watches_are_bounded_over_each_connection_and_in_all(server, monkeypatch):
    monkeypatch.setattr(health, "MOST_WATCHES", 20)
    first, second, third = itertools.islice(connections(server.target), 3)
    request = health_pb2.HealthCheckRequest()
    watches = [first.Watch(request) for _ in range(health.MOST_WATCHES_EACH)]
    assert not any(map(refused, watches))
    assert refused(first.Watch(request)), "one more over the same connection"
    watches += (others := [second.Watch(request) for _ in range(4)])
    assert not any(map(refused, others))
    assert refused(third.Watch(request)), "one more in all"
    assert third.Check(request).status == health_pb2.HealthCheckResponse.SERVING
    for watch in watches:
        watch.cancel()
    for _ in range(PATIENCE):
        if not refused(watch := third.Watch(request)):
            watch.cancel()
            return
    pytest.fail("no room although all have left")


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_a_request_longer_than_a_name_is_refused_before_it_is_parsed(server, method):
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_stream(f"/grpc.health.v1.Health/{method}")
        with pytest.raises(grpc.RpcError, match=f"{SMALL + 1} bytes and {SMALL}") as refusal:
            next(call(b"\xff" * (SMALL + 1)))
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_reflection_reads_no_more_either(server):
    with grpc.insecure_channel(server.target) as channel:
        call = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        )
        with pytest.raises(grpc.RpcError, match=f"{SMALL + 1} bytes and {SMALL}") as refusal:
            next(call(iter([b"\xff" * (SMALL + 1)])))
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
def test_a_compressed_request_is_refused_with_what_to_do(server, pack):
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary("/grpc.health.v1.Health/Check")
        with pytest.raises(grpc.RpcError, match="without compression") as refusal:
            call(pack(bytes(1000)))
    assert refusal.value.code() == grpc.StatusCode.UNIMPLEMENTED
