"""On a machine with an NVIDIA GPU: CUDA when asked for, and the CPU's answers within tolerance."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from serving.client import Client

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_a_driver():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pytest.skip("no NVIDIA driver here (libcuda.so.1)")


def test_cuda_serves_what_the_cpu_serves(start_server, toy_bundles):
    answers = {}
    for provider in ("cuda", "cpu"):
        with Client(start_server(toy_bundles, provider=provider).target) as client:
            answers[provider] = client.sample(64, seed=7, return_z=True)
            if provider == "cuda":
                assert client.get_model().provider == "CUDAExecutionProvider"
    assert answers["cuda"].z.tobytes() == answers["cpu"].z.tobytes()
    difference = answers["cuda"].x.astype(int) - answers["cpu"].x
    assert np.abs(difference).max() <= 1
