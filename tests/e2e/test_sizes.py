"""Memory of a server that rows of many sizes pass through."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from latentd.client import Client
from tests.support.spatial_bundle import blocks, publish_spatial

SIZES, CALLS, CLIENTS = 200, 10_000, 8


@pytest.mark.slow
def test_memory_stays_flat_over_many_sizes(tmp_path, serve):
    """10,000 calls of 200 sizes: the last 8,000 need no more memory than the first 2,000."""
    publish_spatial(tmp_path)
    server = serve("--bundles", str(tmp_path), "--workers", "1", "--provider", "cpu")
    target, _ = server.ready()
    choose = random.Random(0)
    sizes = [(8 * choose.randint(2, 32), 8 * choose.randint(2, 32)) for _ in range(SIZES)]
    with Client(target) as client, ThreadPoolExecutor(CLIENTS) as pool:

        def ask(size: tuple[int, int]) -> None:
            assert client.reconstruct(blocks(1, *size)).x.shape == (1, *size, 3)

        list(pool.map(ask, choose.choices(sizes, k=CALLS // 5)))
        before = server.memory("VmRSS")
        list(pool.map(ask, choose.choices(sizes, k=CALLS - CALLS // 5)))
        after = server.memory("VmRSS")
    print(f"{CALLS} calls of {SIZES} sizes: {before >> 20} MiB, then {after >> 20} MiB")
    assert after <= before + (16 << 20)
