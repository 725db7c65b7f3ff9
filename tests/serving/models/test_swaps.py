"""A new version replaces the old one without disturbing calls."""

from __future__ import annotations

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest

from latentd import bundle, codec
from latentd.pb import vae_pb2 as pb

UNLOADED = {"result": "unloaded", "reason": ""}


def test_new_version_is_served_without_restart(root, publish, start_server, open_stub):
    server = start_server(root, poll_seconds=0.02, keep_versions=1)
    stub = open_stub(server)
    assert stub.answering() == 1
    publish(root)
    stub.wait_until(lambda: stub.answering() == 2)
    stub.wait_until(lambda: server.metric("latentd_reloads_total", **UNLOADED) == 1)
    with pytest.raises(grpc.RpcError, match="toy version 1 is not served"):
        stub.answering(version=1)


def test_metrics_show_served_versions(root, publish, server, stub, provider):
    def info(version: int) -> float:
        served = bundle.load(root / "toy" / str(version)).digest
        labels = {"model": "toy", "version": str(version), "digest": served}
        return server.metric("latentd_model_info", provider=provider, **labels)

    def cost(version: int) -> float:
        labels = {"graph": "decoder", "model": "toy", "version": str(version), "rows": "1"}
        return server.metric("latentd_batch_profile_seconds", **labels)

    def loaded_at(version: int) -> float:
        labels = {"model": "toy", "version": str(version)}
        return server.metric("latentd_model_loaded_timestamp_seconds", **labels)

    publish(root)
    assert (info(1), info(2)) == (1, 0)
    assert cost(1) > 0
    first = loaded_at(1)
    server.scan()
    stub.wait_until(lambda: not info(1))
    assert (info(2), cost(1), loaded_at(1)) == (1, 0, 0)
    assert cost(2) > 0
    assert first < loaded_at(2) <= server.metric("latentd_repository_last_scan_timestamp_seconds")
    for graph in ("encoder", "decoder"):
        labels = {"graph": graph, "model": "toy", "version": "2"}
        costs = stub.GetModel(pb.GetModelRequest()).profiles[graph == "decoder"]
        assert server.metric("latentd_max_batch_rows", **labels) == costs.max_batch_rows


def test_batch_size_and_threads_can_be_set(root, start_server, open_stub, caplog):
    caplog.set_level("INFO")
    server = start_server(root, max_batch_rows=7, intra_op_threads=2, max_batch_latency_ms=1)
    for graph in open_stub(server).GetModel(pb.GetModelRequest()).profiles:
        assert graph.max_batch_rows == 7
        message = f"{graph.graph}, toy version 1: batches of up to 7 rows, 2 thread(s); "
        (line,) = (r.getMessage() for r in caplog.records if message in r.getMessage())
        assert line.partition("ms: ")[2].count(",") == len(graph.timings) - 1


def test_profile_is_reused_for_same_graph_size(root, publish, server, stub):
    def costs() -> list[float]:
        return [cost.seconds for cost in stub.GetModel(pb.GetModelRequest()).profiles[0].timings]

    first = costs()
    publish(root)
    server.scan()
    assert (stub.answering(), costs()) == (2, first)
    path = publish(root)
    encoder = onnx.load_model_from_string(bundle.load(path).files[bundle.ENCODER])
    encoder.doc_string = "a larger file"
    shutil.rmtree(path)
    publish(root, encoder_onnx=encoder.SerializeToString())
    server.scan()
    assert stub.answering() == 3
    assert costs() != first


@pytest.mark.parametrize("listener", ["core", "aio"])
def test_call_finishes_on_its_version(root, publish, start_server, open_stub, listener):
    server = start_server(root, poll_seconds=0, keep_versions=1, listener=listener)
    stub = open_stub(server)
    stream = stub.StreamSamples(pb.StreamSamplesRequest(count=200_000, seed=1, chunk_rows=100))
    chunks = [next(stream)]
    publish(root)
    shutil.rmtree(root / "toy" / "1")
    server.scan()
    assert stub.answering() == 2
    assert server.metric("latentd_unloading_versions") == 1
    chunks += stream
    assert {chunk.served_by.version for chunk in chunks} == {1}
    assert len(chunks) == 2000
    stub.wait_until(lambda: server.metric("latentd_reloads_total", **UNLOADED) == 1)
    assert server.metric("latentd_unloading_versions") == 0
    assert server.metric("latentd_model_loaded_timestamp_seconds", model="toy", version="1") == 0


@pytest.mark.slow
@pytest.mark.parametrize("listener", ["core", "aio"])
def test_swaps_under_load_fail_no_call(
    root, publish, start_server, open_stub, listener, record_property
):
    """Each response is from one version, no call fails, and memory does not grow."""
    server = start_server(root, poll_seconds=0.02, keep_versions=1, listener=listener)
    stub = open_stub(server)
    done = threading.Event()

    def call() -> tuple[set[int], int]:
        calls = 0
        x = np.arange(96, dtype=np.uint8).reshape(6, 4, 4)
        mine, seen = open_stub(server), set()
        while not done.is_set():
            seen.add(mine.answering())
            # Encoder and decoder of two versions would not give x back.
            whole = mine.Reconstruct(pb.ReconstructRequest(x=codec.to_rows(x)))
            np.testing.assert_array_equal(codec.from_rows(whole.x), x)
            chunks = list(mine.StreamSamples(pb.StreamSamplesRequest(count=50, chunk_rows=10)))
            assert len({chunk.served_by.version for chunk in chunks}) == 1
            calls += 3
        return seen, calls

    def swap(times: int) -> int:
        for _ in range(times):
            version = int(publish(root).name)
            stub.wait_until(lambda version=version: stub.answering() == version)
        stub.wait_until(lambda: server.metric("latentd_unloading_versions") == 0)
        return resident_bytes()

    with ThreadPoolExecutor(8) as pool:
        callers = [pool.submit(call) for _ in range(8)]
        before = swap(20)
        after = swap(50)
        done.set()
        seen, calls = zip(*(caller.result() for caller in callers), strict=True)
    record_property(
        "figures",
        f"70 swaps, {sum(calls)} calls made, 0 lost, {before >> 20} MiB, then {after >> 20}",
    )
    assert len(set.union(*seen)) > 10, "the callers hardly met a swap"
    assert after - before < 10 << 20, f"{before >> 20} MiB became {after >> 20}"
    assert server.metric("latentd_reloads_total", **UNLOADED) == 70


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
