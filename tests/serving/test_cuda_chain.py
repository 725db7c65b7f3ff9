"""Both graphs as one on CUDA: what is asked of the device, and what happens when it is full.

On a GPU, or on the stand-in for CUDA's libraries, which also counts (tests/standin)."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from serving import bundle
from serving.bundle import DECODER, ENCODER
from serving.models import loading
from serving.runtime import golden
from serving.runtime.bound import BoundGraph
from serving.runtime.chain import Chain
from serving.runtime.engine import Engine
from serving.runtime.provider import Provider, problem
from serving.settings import Settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(problem()), reason=f"no GPU to be had: {problem()}"),
]


@pytest.fixture(scope="module")
def toy(toy_bundles: Path) -> bundle.Bundle:
    return bundle.load(toy_bundles / "toy" / "1")


class Graphs:
    def __init__(self, toy: bundle.Bundle, cuda_graphs: bool = True) -> None:
        engine, signatures = Engine(Provider("cuda"), cuda_graphs), loading.signatures(toy.manifest)
        self.encoder, self.decoder = (
            engine.load(toy.files[file], signature, threads=1)
            for file, signature in zip((ENCODER, DECODER), signatures, strict=True)
        )
        assert isinstance(self.encoder, BoundGraph)
        self.chain = Chain(self.encoder, self.decoder, "mean")

    def close(self) -> None:
        for graph in (self.chain, self.encoder, self.decoder):
            graph.close()


def images(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, 4, 4), np.uint8)


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_it_gives_what_its_graphs_give(toy, cuda_graphs):
    graphs = Graphs(toy, cuda_graphs)
    of_chain = golden.in_turn(graphs.encoder, graphs.decoder, golden.read(toy)[0], 64)
    assert of_chain.check(graphs.chain, 64) < 1e-3
    for rows in (1, 2, 3, 5, 8, 13, 31, 31, 13, 8, 5, 3, 2, 1):
        x, mean = graphs.chain.run(images(rows, rows), ["x", "mean"])
        np.testing.assert_array_equal(x, images(rows, rows))
        np.testing.assert_allclose(mean, images(rows, rows).reshape(-1, 16) / 255, rtol=1e-5)
    graphs.close()


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_z_stays_and_the_host_waits_once(toy, counters, cuda_graphs):
    graphs = Graphs(toy, cuda_graphs)
    graphs.chain.run(images(5), ["x"])
    names = ("waits", "up_locked", "up_pageable", "down_locked", "down_pageable", "replayed")
    before = {name: getattr(counters, name) for name in names}
    for _ in range(10):
        graphs.chain.run(images(5), ["x"])
    spent = [getattr(counters, name) - count for name, count in before.items()]
    assert spent == [10, 10, 0, 10, 0, 20 * cuda_graphs]
    graphs.close()


def test_threads_record_and_run_it_beside_its_graphs(toy, counters):
    graphs = Graphs(toy)
    met = threading.Barrier(4)

    def ask(seed: int) -> None:
        met.wait()
        for rows in (1, 2, 4, 8, 16) * 10:
            x = images(rows, seed)
            np.testing.assert_array_equal(graphs.chain.run(x, ["x"])[0], x)
            (mean,) = graphs.encoder.run(x, ["mean"])
            np.testing.assert_array_equal(graphs.decoder.run(mean, ["x"])[0], x)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))
    assert not counters.violations
    graphs.close()


def test_everything_is_given_back(toy, counters):
    before = counters.allocated, counters.page_locked, counters.graphs
    for _ in range(3):
        graphs = Graphs(toy)
        graphs.chain.warm_up(64)
        graphs.chain.leave()
        graphs.chain.warm_up(8)
        graphs.close()
    assert (counters.allocated, counters.page_locked, counters.graphs) == before


def test_a_pair_that_is_made_by_half_is_given_back(toy, counters, monkeypatch):
    def fail(*_, **__) -> None:
        raise RuntimeError("unlucky")

    graphs = Graphs(toy)
    graphs.chain.warm_up(1)
    taken = counters.allocated, counters.page_locked
    with monkeypatch.context() as broken:
        broken.setattr(graphs.decoder, "make", fail)
        with pytest.raises(RuntimeError, match="unlucky"):
            graphs.chain.warm_up(64)
    assert (counters.allocated, counters.page_locked) == taken
    np.testing.assert_array_equal(graphs.chain.run(images(64), ["x"])[0], images(64))
    graphs.close()


def test_a_version_for_whose_chain_there_is_no_room_is_served_without(toy, counters, monkeypatch):
    settings = Settings(max_batch_rows=64)
    check, taken = golden.Golden.check, []

    def full(self, graph, rows):
        if not isinstance(graph, Chain):
            return check(self, graph, rows)
        taken.append((counters.allocated, counters.page_locked))
        counters.tell("memory", counters.allocated + 1000)
        try:
            return check(self, graph, rows)
        finally:
            counters.tell("memory", 0)

    monkeypatch.setattr(golden.Golden, "check", full)
    prepared = loading.prepare(toy, Engine(Provider("cuda")), settings)
    assert prepared.reconstructor is None
    gc.collect()
    assert (counters.allocated, counters.page_locked) == taken[0]
    (mean,) = prepared.encoder.graph.run(images(64), ["mean"])
    np.testing.assert_array_equal(prepared.decoder.graph.run(mean, ["x"])[0], images(64))
    prepared.encoder.graph.close()
    prepared.decoder.graph.close()
