"""A server whose graphs are bound, as on a GPU, but on the CPU provider: buckets, two threads a
lane, new versions. What needs a GPU is in test_cuda.py."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hostmemory import HostMemory, Stream

from serving.client import Client
from serving.runtime.bound import BoundGraph
from serving.runtime.engine import Engine, Graph, Signature

CALLERS = 8
CALLS = 25  # of each


@pytest.fixture
def bound(monkeypatch) -> list[BoundGraph]:
    """Every graph that is loaded from now on."""
    loaded: list[BoundGraph] = []

    def load(self: Engine, model: bytes, signature: Signature, threads: int) -> Graph:
        name, dtype, shape = signature.input
        session, takes = self._session(model, threads), (name, (dtype, shape))
        graph = BoundGraph(session, takes, dict(signature.outputs), HostMemory(), Stream(), False)
        loaded.append(graph)
        return graph

    monkeypatch.setattr(Engine, "load", load)
    return loaded


def ask(target: str, caller: int) -> list[int]:
    """Reconstruct rows that nobody else sends; the versions that answered."""
    versions = []
    rng = np.random.default_rng(caller)
    with Client(target) as client:
        for rows in rng.integers(1, 40, CALLS):
            x = rng.integers(0, 256, (rows, 4, 4), np.uint8)
            answer = client.reconstruct(x)
            assert (answer.x == x).all()  # the toy's two graphs are each other's inverse
            versions.append(answer.served_by.version)
    return versions


def ask_all(target: str) -> set[int]:
    with ThreadPoolExecutor(CALLERS) as pool:
        answered = pool.map(lambda caller: ask(target, caller), range(CALLERS))
        return {version for versions in answered for version in versions}


def test_everybody_gets_their_own_rows(tmp_path, publish_toy, start_server, bound):
    publish_toy(tmp_path)
    server = start_server(tmp_path, provider="cpu", max_batch_rows=16)
    assert ask_all(server.target) == {1}
    full = server.metric("latentd_batch_rows_bucket", lane="decoder", le="8.0")
    assert server.metric("latentd_batch_rows_count", lane="decoder") > full  # some were full
    assert server.metric("latentd_golden_difference", model="toy", version="1") < 1e-4


def test_a_version_that_is_let_go_of_gives_its_buffers_back(
    tmp_path, publish_toy, start_server, bound
):
    publish_toy(tmp_path)
    flags = {"provider": "cpu", "max_batch_rows": 16, "keep_versions": 1}
    server = start_server(tmp_path, **flags)
    old = list(bound)
    assert ask_all(server.target) == {1}
    publish_toy(tmp_path)
    server.look()
    assert ask_all(server.target) == {2}
    served = [graph for graph in bound if graph._hands]
    assert len(served) == 2
    assert not set(served) & set(old)
