"""SIGTERM at critical moments, and the health of a server that starts."""

from __future__ import annotations

import signal

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentd import codec
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from tests.support.server import free_port
from tests.support.slow_engine import SLOW

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ROUNDS = 500_000  # of a run that takes half a second or more
CALLS = 6  # one is run, the others wait


def impatient_channel(port: int) -> grpc.Channel:
    """A client that connects too early retries at once."""
    soon = [(f"grpc.{which}_reconnect_backoff_ms", 50) for which in ("initial", "max")]
    return grpc.insecure_channel(f"127.0.0.1:{port}", soon)


def health_of(channel: grpc.Channel, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=service)
    return stub.Check(request, timeout=120, wait_for_ready=True).status


@pytest.mark.parametrize("listener", ["core", "aio"])
def test_nothing_is_served_before_the_golden_check(
    serve, publish_slow, slow_golden, tmp_path, listener
):
    publish_slow(tmp_path, ROUNDS, golden_npz=slow_golden)
    port = free_port()
    flags = ("--workers=1", f"--port={port}", f"--listener={listener}")
    process = serve("--bundles", str(tmp_path), *flags)
    with impatient_channel(port) as channel:
        assert health_of(channel, "liveness") == SERVING
        for service in ("", "vae.v1.VaeService", "readiness"):
            assert health_of(channel, service) == NOT_SERVING
        with pytest.raises(grpc.RpcError, match="loading its models") as refusal:
            VaeServiceStub(channel).Sample(pb.SampleRequest(count=1))
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not any("Serving toy" in line for line in process.log), "too late to tell"
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert [next(watch).status, next(watch).status] == [NOT_SERVING, SERVING]
        watch.cancel()
        assert VaeServiceStub(channel).Sample(pb.SampleRequest(count=1)).x.tensor.data


def test_sigterm_during_the_golden_check(serve, publish_slow, slow_golden, tmp_path):
    publish_slow(tmp_path, ROUNDS, golden_npz=slow_golden)
    port = free_port()
    process = serve("--bundles", str(tmp_path), "--workers=1", f"--port={port}")
    with impatient_channel(port) as channel:
        assert health_of(channel, "") == NOT_SERVING
    process.signal(signal.SIGTERM)
    process.signal(signal.SIGTERM)
    assert process.exit_status() == 0
    assert "Stopped." in process.log[-2]
    assert "Traceback" not in "".join(process.log)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_serves_queued_work(serve, publish_slow, tmp_path, workers):
    publish_slow(tmp_path, ROUNDS)
    flags = (
        "--max-batch-rows=1",
        "--lame-duck-seconds=0.1",
        "--drain-seconds=60",
        f"--workers={workers}",
    )
    process = serve("--bundles", str(tmp_path), *flags)
    target, _ = process.ready()
    with grpc.insecure_channel(target) as channel:
        request = pb.DecodeRequest(z=codec.to_tensor(SLOW))
        calls = [VaeServiceStub(channel).Decode.future(request) for _ in range(CALLS)]
        while not process.value("latentd_queue_rows", graph="decoder"):
            assert not all(call.done() for call in calls), "nothing was queued"
        process.signal(signal.SIGTERM)
        for call in calls:
            assert codec.from_rows(call.result(120).x).min() == 255
    assert process.exit_status() == 0
    assert "Stopped." in process.log[-2]
