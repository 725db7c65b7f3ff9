"""Health: its watches are bounded and forgotten, its requests are small."""

from __future__ import annotations

import gzip
import itertools
import zlib

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentd.transport import health
from latentd.transport.messages import SMALL

MAX_CALLS = 2000  # until the server must have noticed a cancellation


def test_cancelled_watch_is_forgotten(server):
    watchers = server.server._health._watchers
    with grpc.insecure_channel(server.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        watches = [stub.Watch(request) for _ in range(health.MAX_WATCHES_PER_CONNECTION)]
        for watch in watches:
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        for watch in watches:
            watch.cancel()
        for _ in range(MAX_CALLS):
            stub.Check(health_pb2.HealthCheckRequest())  # takes time
            if not watchers:
                return
    pytest.fail(f"{len(watchers)} watches are left")


def connections(target):
    """Stubs, each with its own connection."""
    for number in itertools.count():
        yield health_pb2_grpc.HealthStub(grpc.insecure_channel(target, [("number", number)]))


def rejected(watch) -> bool:
    try:
        next(watch)
    except grpc.RpcError as error:
        return "Too many health watches" in error.details()
    return False


def test_watches_are_limited_per_connection_and_in_total(server, monkeypatch):
    monkeypatch.setattr(health, "MAX_WATCHES", 20)
    first, second, third = itertools.islice(connections(server.target), 3)
    request = health_pb2.HealthCheckRequest()
    watches = [first.Watch(request) for _ in range(health.MAX_WATCHES_PER_CONNECTION)]
    assert not any(map(rejected, watches))
    assert rejected(first.Watch(request)), "one more on this connection"
    watches += (others := [second.Watch(request) for _ in range(4)])
    assert not any(map(rejected, others))
    assert rejected(third.Watch(request)), "one more in total"
    assert third.Check(request).status == health_pb2.HealthCheckResponse.SERVING
    for watch in watches:
        watch.cancel()
    for _ in range(MAX_CALLS):
        if not rejected(watch := third.Watch(request)):
            watch.cancel()
            return
    pytest.fail("new watches are rejected after all others have ended")


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_long_health_request_is_rejected_before_it_is_parsed(server, method):
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_stream(f"/grpc.health.v1.Health/{method}")
        with pytest.raises(grpc.RpcError, match=f"{SMALL + 1} bytes; .* is {SMALL}") as failed:
            next(call(b"\xff" * (SMALL + 1)))
    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_long_reflection_request_is_rejected(server):
    with grpc.insecure_channel(server.target) as channel:
        call = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        )
        with pytest.raises(grpc.RpcError, match=f"{SMALL + 1} bytes; .* is {SMALL}") as failed:
            next(call(iter([b"\xff" * (SMALL + 1)])))
    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
def test_compressed_request_is_rejected_with_advice(server, pack):
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary("/grpc.health.v1.Health/Check")
        with pytest.raises(grpc.RpcError, match="without compression") as failed:
            call(pack(bytes(1000)))
    assert failed.value.code() == grpc.StatusCode.UNIMPLEMENTED
