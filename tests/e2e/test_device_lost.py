"""A GPU that fails under a server: errors of clients, state of the probes, replaced workers.

The server uses ONNX Runtime's CUDA provider. The GPU is the stand-in, which fails on request.
"""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from tests.support import fake_cuda

pytestmark = pytest.mark.fake_cuda

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
INSUFFICIENT_DRIVER = 35
LAUNCH_FAILURE = 719  # CUDA's cudaErrorLaunchFailure, which is permanent


@pytest.fixture(scope="module")
def libraries(tmp_path_factory) -> dict[str, str]:
    return fake_cuda.environment(tmp_path_factory.mktemp("standin"))


@pytest.fixture
def card(libraries) -> fake_cuda.Counters:
    """The GPU of all servers of a test."""
    path = Path(libraries[fake_cuda.COUNTERS])
    path.write_bytes(bytes(path.stat().st_size))
    return fake_cuda.Counters(path)


def sample(stub: VaeServiceStub) -> pb.SampleResponse:
    return stub.Sample(pb.SampleRequest(count=3, seed=7), timeout=120)


@pytest.mark.parametrize("asked", ["cuda", "auto"])
def test_old_driver_is_reported_before_loading(serve, toy_bundles, libraries, card, asked):
    card.set("fail", INSUFFICIENT_DRIVER)
    process = serve("--bundles", str(toy_bundles), "--provider", asked, **libraries)
    if asked == "cuda":
        process.wait_for(
            "CUDA requested but not available: CUDA initialization failed .*Insufficient"
        )
        assert process.exit_status() == 78
    else:
        process.wait_for("Using CPUExecutionProvider: CUDA initialization failed")
        process.answer()


def test_lost_gpu_is_reported_to_clients_and_probes(serve, toy_bundles, libraries, card):
    process = serve("--bundles", str(toy_bundles), "--provider", "cuda", **libraries)
    target, _ = process.ready()
    process.wait_for("Using CUDAExecutionProvider")
    with grpc.insecure_channel(target) as channel:
        stub, health = VaeServiceStub(channel), health_pb2_grpc.HealthStub(channel)
        watches = {
            service: health.Watch(health_pb2.HealthCheckRequest(service=service), timeout=60)
            for service in ("readiness", "liveness")
        }
        assert {next(watch).status for watch in watches.values()} == {SERVING}
        assert sample(stub).x.tensor.data
        assert card.replayed > 0
        card.set("fail", LAUNCH_FAILURE)
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as failed:
                sample(stub)
            assert failed.value.code() is grpc.StatusCode.INTERNAL
            assert "See the server log for request id" in failed.value.details()
        assert {next(watch).status for watch in watches.values()} == {NOT_SERVING}
    process.wait_for("cudaErrorLaunchFailure")
    process.wait_for(
        "Unrecoverable CUDA error: .* This process cannot recover and must be restarted"
    )
    process.signal(15)
    assert process.exit_status() == 0


def test_worker_is_replaced_when_it_loses_its_gpu(serve, toy_bundles, libraries, card):
    flags = ("--provider", "cuda", "--workers", "1")
    process = serve("--bundles", str(toy_bundles), *flags, "--workers", "2", **libraries)
    target, _ = process.ready()
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(target, options) as channel:
        stub = VaeServiceStub(channel)
        assert sample(stub).x.tensor.data
        card.set("fail", LAUNCH_FAILURE)
        for _ in range(3):
            with pytest.raises(grpc.RpcError):
                sample(stub)
    replaced = process.wait_for(r"Worker (\d) died: exit status 70")
    card.set("fail", 0)  # the GPU works in another process
    process.wait_for(rf"Restarted worker {replaced[1]} as process \d+")
    with grpc.insecure_channel(target, options) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=120).status == SERVING


def test_previous_version_serves_when_the_next_does_not_fit(
    serve, tmp_path, publish_toy, libraries, card
):
    publish_toy(tmp_path)
    flags = ("--provider", "cuda", "--workers", "1", "--poll-seconds", "0.2")
    process = serve("--bundles", str(tmp_path), *flags, **libraries)
    target, _ = process.ready()
    with grpc.insecure_channel(target) as channel:
        stub = VaeServiceStub(channel)
        assert sample(stub).served_by.version == 1
        taken = card.allocated
        card.set("memory", taken + 1000)
        publish_toy(tmp_path)
        process.wait_for("Rejected toy version 2: .*memory")
        assert sample(stub).served_by.version == 1
        assert card.allocated == taken
        assert process.value("latentd_reloads_total", result="rejected", reason="engine") >= 1
