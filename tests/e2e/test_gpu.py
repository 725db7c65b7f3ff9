"""On a machine with an NVIDIA GPU: CUDA on request, and the CPU's responses within tolerance."""

from __future__ import annotations

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from latentd.client import Client

pytestmark = pytest.mark.gpu
SIZES = (1, 2, 3, 7, 8, 33, 64, 100)


@pytest.fixture(autouse=True)
def _needs_a_driver():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pytest.skip("no NVIDIA driver here (libcuda.so.1)")


def test_cuda_responses_equal_those_of_the_cpu(start_server, toy_bundles):
    answers = {}
    for provider in ("cuda", "cpu"):
        with Client(start_server(toy_bundles, provider=provider).target) as client:
            answers[provider] = client.sample(64, seed=7, include_z=True)
            if provider == "cuda":
                assert client.get_model().provider == "CUDAExecutionProvider"
    assert answers["cuda"].z.tobytes() == answers["cpu"].z.tobytes()
    difference = answers["cuda"].x.astype(int) - answers["cpu"].x
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_every_batch_size_equals_the_cpu(start_server, toy_bundles, cuda_graphs):
    """Buckets of every size, recorded or not, give the z of the CPU to the bit."""
    answers = {}
    for provider in ("cuda", "cpu"):
        server = start_server(toy_bundles, provider=provider, cuda_graphs=cuda_graphs)
        with Client(server.target) as client:
            answers[provider] = [client.sample(n, seed=n, include_z=True) for n in SIZES]
            if provider == "cuda":
                difference = server.metric("latentd_golden_max_abs_error", model="toy", version="1")
                assert 0 <= difference < 1e-3
    for on_gpu, on_cpu in zip(answers["cuda"], answers["cpu"], strict=True):
        assert on_gpu.z.tobytes() == on_cpu.z.tobytes()
        assert np.abs(on_gpu.x.astype(int) - on_cpu.x).max() <= 1


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_reconstruct_equals_the_cpu(start_server, toy_bundles, cuda_graphs):
    """Recorded or not, x is equal to the bit, because the toy's graphs are inverse to each other.
    Latents and scores are equal within rounding."""
    rng = np.random.default_rng(0)
    chunks = [rng.integers(0, 256, (rows, 4, 4), np.uint8) for rows in (*SIZES, 1, 100)]
    answers = {}
    for provider in ("cuda", "cpu"):
        server = start_server(toy_bundles, provider=provider, cuda_graphs=cuda_graphs)
        with Client(server.target) as client:
            for x in chunks:  # alone, and only x is requested
                np.testing.assert_array_equal(client.reconstruct(x).x, x)
            streamed = client.stream_reconstruct(chunks, include_scores=True, include_latents=True)
            answers[provider] = list(streamed)
    for on_gpu, on_cpu, x in zip(answers["cuda"], answers["cpu"], chunks, strict=True):
        np.testing.assert_array_equal(on_gpu.x, x)
        for name in ("mean", "log_var", "kl", "elbo", "reconstruction_error"):
            found, expected = getattr(on_gpu, name), getattr(on_cpu, name)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_versions_are_recorded_while_others_serve(start_server, tmp_path, publish_toy):
    """Both batchers run in two threads each while the next version's graphs are recorded."""
    publish_toy(tmp_path)
    server = start_server(tmp_path, provider="cuda", max_batch_rows=16, poll_seconds=3600)
    over = threading.Event()

    def ask(caller: int) -> None:
        rng = np.random.default_rng(caller)
        with Client(server.target) as client:
            while not over.is_set():
                x = rng.integers(0, 256, (int(rng.integers(1, 40)), 4, 4), np.uint8)
                assert (client.reconstruct(x).x == x).all()  # the toy's graphs are inverse
                assert (client.decode(client.encode(x).mean).x == x).all()

    with ThreadPoolExecutor(8) as pool:
        callers = [pool.submit(ask, caller) for caller in range(8)]
        try:
            for _ in range(5):
                publish_toy(tmp_path)
                server.scan()
        finally:
            over.set()
        for caller in callers:
            caller.result()
    with Client(server.target) as client:
        assert client.sample(1, seed=1).served_by.version == 6


def test_graph_stays_within_its_memory_limit(start_server, toy_bundles):
    with Client(
        start_server(toy_bundles, provider="cuda", gpu_arena_limit_mib=64).target
    ) as client:
        assert len(client.sample(8, seed=1).x) == 8
