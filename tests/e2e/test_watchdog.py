"""An engine that hangs or fails on every input: detected, reported, and if possible recovered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentd import codec
from latentd.models.watchdog import EngineWatchdog
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from latentd.runtime.cuda import CudaError
from latentd.runtime.engine import CpuGraph
from tests.support.slow_engine import SLOW

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ROUNDS = 10**15  # for ever


@pytest.fixture
def hanging_bundles(tmp_path, publish_slow):
    publish_slow(tmp_path, ROUNDS)
    return tmp_path


@contextmanager
def asking_for_what_hangs(target: str) -> Iterator[None]:
    with grpc.insecure_channel(target) as channel:
        request = pb.DecodeRequest(z=codec.to_tensor(SLOW))
        asked = VaeServiceStub(channel).Decode.future(request)
        yield
        asked.cancel()


def liveness(target: str, seconds: float = 60) -> int:
    with grpc.insecure_channel(target) as channel:
        request = health_pb2.HealthCheckRequest(service="liveness")
        try:
            return health_pb2_grpc.HealthStub(channel).Check(request, timeout=seconds).status
        except grpc.RpcError:  # a probe that gets no answer fails as well
            return NOT_SERVING


@pytest.mark.parametrize("listener", ["core", "aio"])
def test_hung_run_fails_liveness(serve, hanging_bundles, listener):
    flags = ("--workers", "1", "--watchdog-seconds", "3", "--listener", listener)
    process = serve("--bundles", str(hanging_bundles), *flags)
    target, _ = process.ready()
    assert liveness(target) == SERVING
    with asking_for_what_hangs(target):
        process.wait_for("A run of the decoder of toy version 1 exceeded 3 s")
        assert liveness(target, 5) == NOT_SERVING


def test_worker_with_hung_run_is_restarted(serve, hanging_bundles):
    flags = ("--workers", "2", "--watchdog-seconds", "3")
    process = serve("--bundles", str(hanging_bundles), *flags)
    target, _ = process.ready()
    with asking_for_what_hangs(target):
        replaced = process.wait_for(r"Worker (\d) died: exit status 70")
    process.wait_for(rf"Restarted worker {replaced[1]} as process \d+")
    assert liveness(target) == SERVING


def test_broken_engine_fails_readiness_until_it_recovers(server, monkeypatch):
    work = CpuGraph.run
    broken = threading.Event()

    def run(self: CpuGraph, *args):
        if broken.is_set():
            raise RuntimeError("CUDA failure 719: unspecified launch failure")
        return work(self, *args)

    monkeypatch.setattr(CpuGraph, "run", run)
    with grpc.insecure_channel(server.target) as channel:
        stub, health = VaeServiceStub(channel), health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="readiness"), timeout=300)
        assert next(watch).status == SERVING
        broken.set()
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as failed:
                stub.Sample(pb.SampleRequest(count=1))
            assert failed.value.code() is grpc.StatusCode.INTERNAL
        assert next(watch).status == NOT_SERVING
        assert server.server.is_serving("liveness")
        assert not server.server.is_serving("readiness")
        assert server.metric("latentd_engine_faults", kind="broken") == 1
        broken.clear()
        assert next(watch).status == SERVING
        assert server.server.is_serving("readiness")
        watch.cancel()
        assert stub.Sample(pb.SampleRequest(count=1)).x.tensor.data
        assert server.metric("latentd_engine_faults", kind="broken") == 0


def test_failing_rows_do_not_fail_readiness(server, monkeypatch):
    work = CpuGraph.run

    def run(self: CpuGraph, array, outputs):
        if array.dtype == np.float32 and (array == 7).any():
            raise RuntimeError("not these rows")
        return work(self, array, outputs)

    monkeypatch.setattr(CpuGraph, "run", run)
    tried = threading.Event()
    model = server.server.repository.models()[0]
    probe = model.self_test
    monkeypatch.setattr(model, "self_test", lambda: (probe(), tried.set()))
    with grpc.insecure_channel(server.target) as channel:
        stub = VaeServiceStub(channel)
        poison = pb.DecodeRequest(z=codec.to_tensor(np.full((1, 16), 7, np.float32)))
        for _ in range(5):
            with pytest.raises(grpc.RpcError):
                stub.Decode(poison)
        assert tried.wait(60), "the watchdog did not test the model"
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(service="readiness")).status == SERVING


def test_sticky_cuda_error_is_fatal(server, monkeypatch):
    watchdog = EngineWatchdog(server.server.repository, 60.0, on_cpu=False)
    models = server.server.repository.models()

    def run(self: CpuGraph, *args):
        raise CudaError("cudaMalloc: cudaErrorMemoryAllocation, out of memory", sticky)

    monkeypatch.setattr(CpuGraph, "run", run)
    sticky = False
    assert watchdog.self_test(models) == "toy version 1"
    assert not watchdog.fatal_error()
    sticky = True
    assert watchdog.self_test(models) == "toy version 1"
    assert "Unrecoverable CUDA error: cudaMalloc" in watchdog.fatal_error()


@pytest.mark.parametrize("on_cpu", [False, True])
def test_broken_gpu_graph_is_fatal_after_a_while(server, monkeypatch, on_cpu):
    now = 0.0
    watchdog = EngineWatchdog(server.server.repository, 60.0, on_cpu, clock=lambda: now)
    models = server.server.repository.models()
    assert not watchdog.fatal_error()

    def run(self: CpuGraph, *args):
        raise RuntimeError("CUDA failure 719: unspecified launch failure")

    monkeypatch.setattr(CpuGraph, "run", run)
    assert watchdog.self_test(models) == "toy version 1"
    now = 20.0
    assert watchdog.self_test(models)
    assert not watchdog.fatal_error()
    now = 31.0  # since the first time, not the last
    assert watchdog.self_test(models)
    assert bool(watchdog.fatal_error()) is not on_cpu
    monkeypatch.undo()
    assert not watchdog.self_test(models)
    assert not watchdog.fatal_error()
