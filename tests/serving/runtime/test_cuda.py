"""Graphs on CUDA: which calls the device gets, in which order, and that all memory is freed.

On a GPU, or on the fake CUDA libraries, which also count the calls (tests/support/fake_cuda.py)."""

from __future__ import annotations

import ctypes
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from latentd import bundle
from latentd.bundle import DECODER, ENCODER
from latentd.errors import BundleError
from latentd.models import loading
from latentd.runtime import golden
from latentd.runtime.cuda import Cuda, CudaAllocation, CudaError, CudaStream
from latentd.runtime.engine import CpuGraph, SessionFactory
from latentd.runtime.io_binding import IOBindingGraph
from latentd.runtime.provider import CUDA, Provider, unavailable_reason

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(unavailable_reason()), reason=f"no GPU: {unavailable_reason()}"),
]
SIZES = (1, 2, 3, 5, 8, 13, 31)


@pytest.fixture(scope="module")
def toy(toy_bundles: Path) -> bundle.Bundle:
    return bundle.load(toy_bundles / "toy" / "1")


def load(toy: bundle.Bundle, file: str, cuda_graphs: bool = True, provider: str = "cuda"):
    signature = loading.signatures(toy.manifest)[file == DECODER]
    graph = SessionFactory(Provider(provider), cuda_graphs).load(
        toy.files[file], signature, threads=1
    )
    assert isinstance(graph, CpuGraph if provider == "cpu" else IOBindingGraph)
    return graph


def latents(toy: bundle.Bundle, rows: int, seed: int = 0) -> np.ndarray:
    shape = rows, *toy.manifest.default.z
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_every_size_gives_the_results_of_the_cpu(toy, cuda_graphs):
    decoder, plain = load(toy, DECODER, cuda_graphs), load(toy, DECODER, provider="cpu")
    assert decoder._session.get_providers()[0] == CUDA
    for rows in (*SIZES, *SIZES):  # captured, then replayed
        z = latents(toy, rows, seed=rows)
        x, params = decoder.run(z, ["x", "params"])
        expected_x, expected_params = plain.run(z, ["x", "params"])
        assert np.abs(x.astype(int) - expected_x).max() <= 1
        np.testing.assert_allclose(params, expected_params, rtol=1e-4, atol=1e-5)
    decoder.close()


def test_golden_vectors_run_in_every_bucket(toy):
    encoder, decoder = load(toy, ENCODER), load(toy, DECODER)
    (of_encoder,), (of_decoder,), _ = golden.read(toy)
    assert 0 <= of_encoder.check(encoder, 64) < 1e-3
    assert 0 <= of_decoder.check(decoder, 64) < 1e-3
    encoder.close()
    decoder.close()


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_run_queues_everything_and_waits_once(toy, counters, cuda_graphs):
    decoder, z = load(toy, DECODER, cuda_graphs), latents(toy, 5)
    decoder.run(z, ["x", "params"])
    before = {name: getattr(counters, name) for name in ("waits", "up_locked", "down_locked")}
    pageable = counters.up_pageable, counters.down_pageable
    replayed = counters.replayed
    for _ in range(10):
        decoder.run(z, ["x", "params"])
    spent = {name: getattr(counters, name) - count for name, count in before.items()}
    assert spent == {"waits": 10, "up_locked": 10, "down_locked": 20}  # z; x and params
    assert (counters.up_pageable, counters.down_pageable) == pageable
    assert counters.replayed - replayed == 10 * cuda_graphs
    decoder.close()


def test_threads_queue_work_while_another_waits(toy, counters, monkeypatch):
    decoder, before = load(toy, DECODER), counters.overlaps
    expected = {seed: decoder.run(latents(toy, 4, seed), ["params"])[0] for seed in range(2)}
    both_queued, synchronize = threading.Barrier(2, timeout=20), CudaStream.synchronize

    def ask(seed: int) -> bool:
        decoder.run(latents(toy, 4), ["params"])  # builds the bucket
        met.wait()
        return bool((decoder.run(latents(toy, 4, seed), ["params"])[0] == expected[seed]).all())

    def synchronize_late(stream: CudaStream) -> None:
        both_queued.wait()
        synchronize(stream)

    met = threading.Barrier(
        2, action=lambda: monkeypatch.setattr(CudaStream, "synchronize", synchronize_late)
    )
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(ask, expected))
    monkeypatch.undo()
    assert counters.overlaps > before
    decoder.close()


def test_captures_are_alone_on_the_device(toy, counters):
    """Threads build buckets, load graphs and run them at once: no call breaks CUDA's rule."""
    encoder, before = load(toy, ENCODER), counters.captured
    x = np.random.default_rng(0).integers(0, 256, (4, 4, 4), np.uint8)
    stop = threading.Event()
    counters.set("linger", 2000)

    def use() -> None:
        while not stop.is_set():
            encoder.run(x, ["mean"])

    def capture(rows: int) -> None:
        graph = load(toy, DECODER)
        graph.warm_up(rows)
        graph.close()

    with ThreadPoolExecutor(4) as pool:
        users = [pool.submit(use) for _ in range(2)]
        try:
            list(pool.map(capture, (2, 4, 8, 16, 2, 4, 8, 16)))
        finally:
            stop.set()
            counters.set("linger", 0)
        for user in users:
            user.result()
    assert counters.captured > before
    assert not counters.violations
    encoder.close()


def test_all_memory_is_freed(toy, counters):
    before = counters.allocated, counters.page_locked, counters.graphs
    for _ in range(5):
        encoder, decoder = load(toy, ENCODER), load(toy, DECODER)
        encoder.warm_up(64)
        decoder.warm_up(64)
        assert counters.allocated > before[0]
        assert counters.page_locked > before[1]
        decoder.release_thread()
        encoder.close()
        decoder.close()
    assert (counters.allocated, counters.page_locked, counters.graphs) == before


def test_out_of_memory_fails_one_batch_and_leaks_nothing(toy, counters):
    decoder = load(toy, DECODER)
    z, taken = latents(toy, 64), (counters.allocated, counters.page_locked)
    try:
        counters.set("memory", counters.allocated + 1000)
        with pytest.raises(CudaError, match=r"cudaMalloc: .* out of memory") as failed:
            decoder.run(z, ["x", "params"])
        assert not failed.value.sticky
        assert (counters.allocated, counters.page_locked) == taken
        assert len(decoder.run(latents(toy, 1), ["x", "params"])[0]) == 1
        with pytest.raises(BundleError, match="memory"):
            load(toy, ENCODER)
        gc.collect()  # the error's traceback refers to the session
        assert (counters.allocated, counters.page_locked) == taken
    finally:
        counters.set("memory", 0)
    assert len(decoder.run(z, ["x", "params"])[0]) == 64
    decoder.close()


def test_streams_run_in_order_and_wait_for_each_other():
    first, second = CudaStream(), CudaStream()
    device, host = Cuda().allocate(8)
    other_host = CudaAllocation(8, page_locked=True)
    sent = ctypes.c_double.from_address(host.address)
    received = ctypes.c_double.from_address(other_host.address)
    for number in range(100):
        sent.value = number
        first.copy(device.address, host.address, 8)
        second.wait_stream(first)
        second.copy(other_host.address, device.address, 8)
        second.synchronize()
        assert received.value == number
    for each in (device, host, other_host, first, second):
        each.close()
