"""The server process: start, logs, stop."""

from __future__ import annotations

import json
import signal
import socket
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from latentd.client import Client
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub


def health_of(channel: grpc.Channel, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=service)).status


WORKERS = pytest.mark.parametrize("workers", ["1", "2"])

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_health_reflection_and_metrics(serve, toy_bundles):
    process = serve("--bundles", str(toy_bundles), "--provider", "auto")
    target, metrics = process.ready()
    process.wait_for("Using CPUExecutionProvider|Using CUDA")
    with grpc.insecure_channel(target) as channel:
        for service in ("", "vae.v1.VaeService", "readiness", "liveness"):
            assert health_of(channel, service) == SERVING
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "vae.v1.VaeService" in database.get_services()
        described = database.FindFileContainingSymbol("vae.v1.SampleRequest")
        assert "StreamSamplesRequest" in [message.name for message in described.message_type]
        VaeServiceStub(channel).Sample(pb.SampleRequest(count=1))
    with urllib.request.urlopen(metrics) as page:
        text = page.read().decode()
    assert 'latentd_requests_total{code="OK",method="Sample",model="toy"} 1.0' in text
    assert 'latentd_queue_rows{graph="decoder",model="toy",version="1"} 0.0' in text


@WORKERS
def test_sigterm_finishes_calls_and_exits_0(serve, toy_bundles, workers):
    flags = ("--workers", workers, "--lame-duck-seconds", "0.2")
    process = serve("--bundles", str(toy_bundles), *flags)
    target, _ = process.ready()
    with grpc.insecure_channel(target) as channel:
        request = pb.StreamSamplesRequest(count=20_000, seed=1, chunk_rows=100)
        stream = VaeServiceStub(channel).StreamSamples(request)
        next(stream)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == SERVING
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGTERM)  # twice changes nothing
        assert next(watch).status == NOT_SERVING
        watch.cancel()
        assert sum(1 for _ in stream) == 199, "the stream was cut"
    assert process.exit_status() == 0
    assert "Stopped." in process.log[-2]


@WORKERS
def test_sigterm_while_loading(serve, toy_bundles, workers):
    process = serve("--bundles", str(toy_bundles), "--workers", workers)
    process.wait_for("Provider")
    process.signal(signal.SIGTERM)
    assert process.exit_status() == 0


def test_sigterm_while_a_new_version_loads(serve, publish_toy, tmp_path):
    publish_toy(tmp_path)
    process = serve("--bundles", str(tmp_path), "--poll-seconds", "0.01")
    process.ready()
    for _ in range(10):
        publish_toy(tmp_path)
    process.wait_for("Serving toy version [2-9]")
    process.signal(signal.SIGTERM)
    assert process.exit_status() == 0
    assert "Stopped." in process.log[-2]
    assert "Traceback" not in "".join(process.log)


def test_missing_cuda_fails_the_start(serve, toy_bundles):
    if Path("/dev/nvidia0").exists():
        pytest.skip("this machine has a GPU: CUDA would be had")
    process = serve("--bundles", str(toy_bundles), "--provider", "cuda")
    assert process.exit_status() == 78
    said = "".join(process.log)
    assert "CUDA requested but not available: " in said
    assert "Traceback" not in said


@WORKERS
def test_invalid_settings_are_reported(serve, toy_bundles, tmp_path, workers):
    tokens = tmp_path / "tokens"
    tokens.write_text("nonsense")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        cases = {
            "does not exist": ["--bundles", str(tmp_path / "nowhere")],
            "Cannot listen on": ["--bundles", str(toy_bundles), "--port", port],
            "--metrics-port": ["--bundles", str(toy_bundles), "--metrics-port", port],
            "--host nowhere.invalid cannot be resolved": [
                *("--bundles", str(toy_bundles), "--host", "nowhere.invalid")
            ],
            "tokens, line 1: expected NAME": [
                *("--bundles", str(toy_bundles), "--tokens", str(tokens))
            ],
            "model 'other' is not served": [
                *("--bundles", str(toy_bundles), "--default-model", "other")
            ],
            f"Did you mean {toy_bundles}?": ["--bundles", str(toy_bundles / "toy")],
            f"of one model or version. Did you mean {toy_bundles}?": [
                *("--bundles", str(toy_bundles / "toy" / "1"))
            ],
            "must be one of": ["--bundles", str(toy_bundles), "--provider", "tpu"],
        }
        running = {said: serve(*flags, "--workers", workers) for said, flags in cases.items()}
        for said, process in running.items():
            status, log = process.exit_status(), "".join(process.log)
            assert status == 78, (said, log)
            assert said in log
            assert log.count("latentd: ") == 1, "said once, and not by each worker"
            assert "Traceback" not in log


@WORKERS
def test_listens_on_ipv6(serve, toy_bundles, workers):
    process = serve("--bundles", str(toy_bundles), "--host", "::1", "--workers", workers)
    port = process.wait_for(r"Listening on \[::1\]:(\d+), metrics on http://\[::1\]:\d+")[1]
    with Client(f"[::1]:{port}") as client:
        assert client.health() == "SERVING"


def test_settings_from_environment_and_json_logs(serve, toy_bundles):
    process = serve(LATENTD_BUNDLES=str(toy_bundles), LATENTD_LOG_FORMAT="json")
    message = process.wait_for(r"\{.*Listening on.*\}")[0]
    assert json.loads(message)["level"] == "info"


def test_reflection_off(serve, toy_bundles):
    target, _ = serve("--bundles", str(toy_bundles), "--reflection", "false").ready()
    with grpc.insecure_channel(target) as channel:
        call = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        )
        with pytest.raises(grpc.RpcError) as refusal:
            next(call(iter([b""])))
        assert refusal.value.code() == grpc.StatusCode.UNIMPLEMENTED
