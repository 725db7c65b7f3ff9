"""Health over the wire: what is asked of it leaves nothing behind."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

PATIENCE = 2000  # calls that a server may need to hear of a cancellation


def test_a_watch_that_is_left_is_forgotten(server):
    watchers = server.server._health._watchers
    with grpc.insecure_channel(server.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(20)]
        for watch in watches:
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        for watch in watches:
            watch.cancel()
        for _ in range(PATIENCE):
            stub.Check(health_pb2.HealthCheckRequest())  # time passes
            if not watchers:
                return
    pytest.fail(f"{len(watchers)} watches are remembered")


def test_a_name_as_long_as_a_message_is_not_said_back(server):
    with grpc.insecure_channel(server.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.RpcError) as refusal:
            stub.Check(health_pb2.HealthCheckRequest(service="x" * 100_000))
    assert refusal.value.code() == grpc.StatusCode.NOT_FOUND
