"""A server whose graphs are bound, as on a GPU, but on the CPU provider: buckets, two threads for
each batcher, new versions. test_cuda.py has the tests that need a GPU."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from latentd.client import Client
from latentd.errors import BundleError
from latentd.runtime.golden import Golden
from tests.support.bound_model import POISON, images
from tests.support.fake_device import buckets

CLIENTS = 8
CALLS = 25  # of each


def ask(target: str, seed: int) -> list[int]:
    """Reconstruct rows that only this client sends, in one call and in two; the versions used."""
    versions = []
    rng = np.random.default_rng(seed)
    with Client(target) as client:
        for rows in rng.integers(1, 40, CALLS):
            x = rng.integers(0, 256, (rows, 4, 4), np.uint8)
            answer = client.reconstruct(x)
            assert (answer.x == x).all()  # the toy's two graphs are inverse to each other
            versions.append(answer.served_by.version)
            encoding = client.encode(x)
            decoded = client.decode(encoding.mean)
            assert (decoded.x == x).all()
            versions += [encoding.served_by.version, decoded.served_by.version]
    return versions


def ask_all(target: str) -> set[int]:
    with ThreadPoolExecutor(CLIENTS) as pool:
        answered = pool.map(lambda seed: ask(target, seed), range(CLIENTS))
        return {version for versions in answered for version in versions}


GRAPHS = ["encoder", "decoder"]


def test_every_client_gets_its_own_rows(tmp_path, publish_toy, start_server, bound):
    publish_toy(tmp_path)
    server = start_server(tmp_path, provider="cpu", max_batch_rows=16)
    assert ask_all(server.target) == {1}
    for graph in GRAPHS:
        full = server.metric("latentd_batch_rows_bucket", graph=graph, le="8.0")
        assert server.metric("latentd_batch_rows_count", graph=graph) > full  # some were full
    assert server.metric("latentd_golden_max_abs_error", model="toy", version="1") < 1e-4


def test_every_graph_is_reported(tmp_path, publish_toy, start_server, bound):
    publish_toy(tmp_path)
    server = start_server(tmp_path, provider="cpu", max_batch_rows=16)
    with Client(server.target) as client:
        reported = {graph.graph: graph for graph in client.get_model().profiles}
    assert list(reported) == GRAPHS
    of_toy = {"model": "toy", "version": "1"}
    for name, graph in reported.items():
        assert graph.max_batch_rows == 16
        assert server.metric("latentd_max_batch_rows", graph=name, **of_toy) == 16
        cost = server.metric("latentd_batch_profile_seconds", graph=name, rows="16", **of_toy)
        assert cost == graph.seconds[16]


@pytest.mark.parametrize("scores", [True, False])
def test_stream_gets_its_outputs_and_the_number_of_a_failing_row(
    tmp_path, publish_toy, start_server, bound, scores
):
    publish_toy(tmp_path)
    server = start_server(tmp_path, provider="cpu", max_batch_rows=16)
    (model,) = server.server.repository.models()
    graph = model.loaded.encoder.graph
    run = graph.run

    def fail_on_poison(x, outputs):
        if (x == POISON).any():
            raise RuntimeError("unlucky")
        return run(x, outputs)

    graph.run = fail_on_poison
    x = images(40)
    x[23, 1, 2] = POISON
    with Client(server.target) as client:
        parts = list(
            client.stream_reconstruct([x[:10], x[10:]], include_latents=True, include_scores=scores)
        )
    assert [part.errors for part in parts] == [{}, {13: "the model fails on this row"}]
    kept = np.delete(x, 23, axis=0)
    np.testing.assert_array_equal(np.concatenate([part.x for part in parts]), kept)
    mean = np.concatenate([part.mean for part in parts])
    np.testing.assert_allclose(mean, kept.reshape(39, 16) / 255, rtol=1e-6)
    assert all((part.log_var == -2).all() for part in parts)
    assert len(np.concatenate([part.elbo for part in parts])) == (39 if scores else 0)


def test_version_serves_after_all_its_threads_are_ready(tmp_path, publish_toy, start_server, bound):
    publish_toy(tmp_path)
    server = start_server(tmp_path, provider="cpu", max_batch_rows=16)
    (model,) = server.server.repository.models()
    loaded = (model.loaded.encoder, model.loaded.decoder)
    for (batcher, _), profiled in zip(model.batchers(), loaded, strict=True):
        assert len(batcher._threads) == 2
        ready = [
            state
            for state in profiled.graph._thread_buckets
            if sorted(rows for rows, _ in state.buckets) == [1, 2, 4, 8, 16]
        ]
        assert len(ready) == 2


@pytest.mark.parametrize("graph", GRAPHS)
def test_version_is_refused_when_its_threads_do_not_get_ready(
    tmp_path, publish_toy, start_server, bound, monkeypatch, graph
):
    publish_toy(tmp_path)
    server = start_server(tmp_path, provider="cpu", max_batch_rows=16)
    check = Golden.check

    def broken(self, golden_graph, rows=0):
        if threading.current_thread().name == f"{graph}-batcher":
            raise BundleError("golden", "A graph fails on its golden inputs: out of memory")
        return check(self, golden_graph, rows)

    monkeypatch.setattr(Golden, "check", broken)
    publish_toy(tmp_path)
    server.scan()
    assert ask_all(server.target) == {1}
    (refused,) = server.server.repository.rejected()
    assert (refused.version, refused.reason) == (
        2,
        "A graph fails on its golden inputs: out of memory",
    )
    assert server.metric("latentd_reloads_total", result="rejected", reason="golden") == 1
    unloaded = {"graph": graph, "model": "toy", "version": "2"}
    assert server.server.metrics.registry.get_sample_value("latentd_queue_rows", unloaded) is None
    assert len([graph for graph in bound if buckets(graph)]) == 2


def test_unloaded_version_frees_its_buffers(tmp_path, publish_toy, start_server, bound):
    publish_toy(tmp_path)
    server = start_server(tmp_path, provider="cpu", max_batch_rows=16, keep_versions=1)
    repository = server.server.repository
    old = list(bound)
    assert ask_all(server.target) == {1}
    publish_toy(tmp_path)
    server.scan()
    assert ask_all(server.target) == {2}
    for thread in repository._unload_threads:
        thread.join()
    served = [graph for graph in bound if buckets(graph)]
    assert len(served) == 2
    assert not set(served) & set(old)
