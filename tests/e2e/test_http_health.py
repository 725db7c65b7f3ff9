"""Health over HTTP says what grpc.health.v1 says, in every state of a server."""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentd import codec
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from latentd.process import heartbeat
from latentd.process.metrics_server import HEALTH_PATHS
from latentd.transport.handlers import CallStream, Handler
from latentd.transport.status import Status
from tests.support.server import free_port
from tests.support.slow_engine import SLOW

SECONDS = 60  # only broken code makes a test wait so long
READY = {"/livez": 200, "/readyz": 200, "/startupz": 200}
LOADING = {"/livez": 200, "/readyz": 503, "/startupz": 503}
DRAINING = {"/livez": 200, "/readyz": 503, "/startupz": 200}
ENDLESS = 10**15  # rounds of a run


def get(page: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(page.replace("/metrics", path), timeout=SECONDS) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode()


def health(page: str) -> dict[str, int]:
    answers = {path: get(page, path) for path in HEALTH_PATHS}
    for status, body in answers.values():
        assert body == {200: "SERVING\n", 503: "NOT_SERVING\n"}[status]
    return {path: status for path, (status, _) in answers.items()}


def grpc_health(target: str) -> dict[str, int]:
    """What grpc.health.v1 says, in the words of HTTP."""
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        words = {}
        for path, service in HEALTH_PATHS.items():
            request = health_pb2.HealthCheckRequest(service=service)
            response = stub.Check(request, timeout=SECONDS, wait_for_ready=True)
            words[path] = 200 if response.status == response.SERVING else 503
        return words


def until(state: Callable[[], object], wanted: object) -> None:
    due = time.monotonic() + SECONDS
    while (now := state()) != wanted:
        assert time.monotonic() < due, f"still {now}"


@contextmanager
def slow_calls(target: str, calls: int = 1) -> Iterator[list[grpc.Future]]:
    with grpc.insecure_channel(target) as channel:
        request = pb.DecodeRequest(z=codec.to_tensor(SLOW))
        asked = [VaeServiceStub(channel).Decode.future(request) for _ in range(calls)]
        yield asked


@pytest.fixture
def endless(publish_slow, tmp_path) -> Path:
    """Bundles whose decoder never returns from SLOW."""
    publish_slow(tmp_path, ENDLESS)
    return tmp_path


@pytest.mark.parametrize("workers", [1, 2])
def test_ready_server_serves_and_other_paths_fail(serve, toy_bundles, workers):
    target, page = serve("--bundles", str(toy_bundles), f"--workers={workers}").ready()
    assert health(page) == grpc_health(target) == READY
    assert get(page, "/readyz?verbose=1")[0] == 200
    status, text = get(page, "/ready")
    assert status == 404
    assert all(path in text for path in HEALTH_PATHS)


@pytest.mark.parametrize("workers", [1, 2])
def test_loading_server_is_live(serve, publish_slow, slow_golden, tmp_path, workers):
    publish_slow(tmp_path, ENDLESS, golden_npz=slow_golden)
    port, metrics_port = free_port(), free_port()
    flags = (f"--port={port}", f"--metrics-port={metrics_port}", f"--workers={workers}")
    serve("--bundles", str(tmp_path), *flags)
    assert grpc_health(f"127.0.0.1:{port}") == LOADING
    assert health(f"http://127.0.0.1:{metrics_port}/metrics") == LOADING


@pytest.mark.parametrize("workers", [1, 2])
def test_draining_server_is_live(serve, toy_bundles, workers):
    flags = (f"--workers={workers}", f"--lame-duck-seconds={SECONDS}")
    process = serve("--bundles", str(toy_bundles), *flags)
    target, page = process.ready()
    process.signal(signal.SIGTERM)
    until(lambda: grpc_health(target), DRAINING)
    assert health(page) == DRAINING


def test_overloaded_server_is_ready(serve, endless):
    flags = ("--workers=1", "--max-batch-rows=1", "--queue-rows=1", "--watchdog-seconds=0")
    # With the other listener the run holds up the listener's thread, as long as it lasts.
    target, page = serve("--bundles", str(endless), *flags, "--listener=aio").ready()
    with slow_calls(target, calls=4) as calls:
        until(lambda: any(call.done() for call in calls), True)
        codes = {call.code() for call in calls if call.done()}
        assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert health(page) == grpc_health(target) == READY


@pytest.mark.parametrize("listener", ["core", "aio"])
def test_hung_run_fails_liveness(serve, endless, listener):
    flags = ("--workers=1", "--watchdog-seconds=3", f"--listener={listener}")
    process = serve("--bundles", str(endless), *flags)
    target, page = process.ready()
    with slow_calls(target):
        process.wait_for("A run of the decoder of toy version 1 exceeded 3 s")
        until(lambda: get(page, "/livez")[0], 503)
        assert get(page, "/readyz")[0] == 503


def test_hung_worker_is_replaced_and_the_server_stays_live(serve, endless):
    process = serve("--bundles", str(endless), "--workers=2", "--watchdog-seconds=2")
    target, page = process.ready()
    with slow_calls(target):
        while not any("Restarted worker" in line for line in process.log):
            assert health(page) in (READY, DRAINING)  # the latter if neither of them serves
    until(lambda: health(page), READY)


def test_worker_that_makes_no_progress_fails_liveness(serve, toy_bundles):
    process = serve("--bundles", str(toy_bundles), "--workers=2")
    _, page = process.ready()
    worker = int(process.wait_for(r"Worker 2 is ready \(process (\d+)\)")[1])
    os.kill(worker, signal.SIGSTOP)
    try:
        until(lambda: health(page), {"/livez": 503, "/readyz": 503, "/startupz": 200})
    finally:
        os.kill(worker, signal.SIGCONT)
    until(lambda: health(page), READY)


@pytest.mark.parametrize("stuck", ["loop", "listener"])
def test_process_that_makes_no_progress_fails_liveness(
    start_server, toy_bundles, monkeypatch, stuck
):
    monkeypatch.setattr(heartbeat, "MAX_SILENT_SECONDS", 1.0)
    server = start_server(toy_bundles)
    page = f"http://127.0.0.1:{server.server.metrics_port}/metrics"
    release, call = threading.Event(), None

    async def block(stream: CallStream) -> Status:
        release.wait(SECONDS)
        return Status(message=b"")

    with grpc.insecure_channel(server.target) as channel:
        try:
            if stuck == "loop":
                server.loop.call_soon_threadsafe(release.wait, SECONDS)
            else:
                server.server.listener.handlers = {"/block": Handler(block)}
                call = channel.unary_unary("/block").future(b"")
            until(lambda: health(page), dict.fromkeys(HEALTH_PATHS, 503))
        finally:
            release.set()
        assert call is None or call.result(SECONDS) == b""
        until(lambda: health(page), READY)
