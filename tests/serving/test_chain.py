"""Two bound graphs as one: what passes from the first to the second stays where it is made. On the
CPU provider, where memory on the device and off it is the same, so that what would be copied is
seen by the calls that copy; what needs a GPU is in test_cuda.py."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
from hostmemory import HostMemory, Stream, buckets, sizes

from serving import bundle
from serving.bundle import DECODER, ENCODER
from serving.errors import BundleError
from serving.models import loading
from serving.runtime import golden
from serving.runtime.bound import BoundGraph
from serving.runtime.buffers import Buffer
from serving.runtime.chain import Chain
from serving.runtime.gpu import GPU

ALL = ("x", "params", "mean", "log_var")


@pytest.fixture(scope="module")
def toy(toy_bundles: Path) -> bundle.Bundle:
    return bundle.load(toy_bundles / "toy" / "1")


class Graphs:
    """The toy's graphs, bound, and a chain of them."""

    def __init__(self, toy: bundle.Bundle, cuda_graph: bool = False) -> None:
        bound = []
        signatures = loading.signatures(toy.manifest)
        for file, signature in zip((ENCODER, DECODER), signatures, strict=True):
            session = ort.InferenceSession(toy.files[file], providers=["CPUExecutionProvider"])
            name, *row = signature.input
            takes, gives = (name, tuple(row)), dict(signature.outputs)
            device = HostMemory(), Stream()
            bound.append(BoundGraph(session, takes, gives, *device, cuda_graph))
        self.encoder, self.decoder = bound
        self.chain = Chain(self.encoder, self.decoder, "mean")

    def in_turn(self, x: np.ndarray) -> dict[str, np.ndarray]:
        mean, log_var = self.encoder.run(x, ["mean", "log_var"])
        decoded, params = self.decoder.run(mean, ["x", "params"])
        return {"mean": mean, "log_var": log_var, "x": decoded, "params": params}


@pytest.fixture
def graphs(toy: bundle.Bundle) -> Graphs:
    return Graphs(toy)


@pytest.fixture
def chain(graphs: Graphs) -> Chain:
    return graphs.chain


def images(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, 4, 4), np.uint8)


def in_thread(act: Callable[[], object]) -> None:
    thread = threading.Thread(target=act)
    thread.start()
    thread.join()


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 13, 31, 64])
@pytest.mark.parametrize("outputs", [ALL, ("x",), ("log_var", "x", "mean"), ("params", "x")])
def test_it_gives_what_its_graphs_give_one_after_the_other(graphs, rows, outputs):
    expected = graphs.in_turn(images(rows))
    found = graphs.chain.run(images(rows), outputs)
    assert len(found) == len(outputs)
    for name, array in zip(outputs, found, strict=True):
        assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape)
        np.testing.assert_array_equal(array, expected[name])


def test_what_passes_between_them_is_one_buffer(chain):
    chain.warm_up(16)
    for pair in buckets(chain):
        assert pair.second.input is pair.outputs["mean"]
        made = [pair.first.input, *pair.outputs.values()]
        assert pair.second.input.there.address in {b.there.address for b in made}
        assert len({buffer.there.address for buffer in made}) == 5  # x, mean, log_var; x, params


def test_only_what_is_given_and_what_is_asked_for_is_copied(chain, monkeypatch):
    chain.run(images(3), ["x"])
    (pair,) = buckets(chain)
    up, down = [], []
    upload, download = Buffer.upload, Buffer.download
    monkeypatch.setattr(Buffer, "upload", lambda b, *to: [up.append(b), upload(b, *to)])
    monkeypatch.setattr(Buffer, "download", lambda b, *to: [down.append(b), download(b, *to)])
    chain.run(images(3), ["x"])
    chain.run(images(3), ["mean"])
    assert up == [pair.first.input] * 2
    assert down == [pair.outputs["x"], pair.outputs["mean"]]


def test_answers_stay_when_the_buffers_are_used_again(chain):
    first = chain.run(images(3, seed=1), ALL)
    kept = [array.copy() for array in first]
    chain.run(images(3, seed=2), ALL)
    for array, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_a_batch_never_sees_the_rows_of_the_one_before(graphs):
    graphs.chain.run(images(4, seed=2), ALL)  # the same bucket, filled to the brim
    (x,) = graphs.chain.run(images(3, seed=1), ["x"])
    np.testing.assert_array_equal(x, images(3, seed=1))


def test_memory_stays_where_it_is(chain):
    def places() -> set[int]:
        made = [buffer for pair in buckets(chain) for buffer in pair.outputs.values()]
        made += [pair.first.input for pair in buckets(chain)]
        return {buffer.there.address for buffer in made}

    chain.warm_up(16)
    before = places()
    assert len(before) == 5 * 5  # of 1, 2, 4, 8 and 16 rows
    for rows in (*range(1, 17), *range(16, 0, -1)):
        chain.run(images(rows), ALL)
    assert places() == before


def test_threads_share_a_chain_and_no_buffer_also_beside_its_graphs(graphs):
    wrong: list[str] = []

    def ask(seed: int) -> None:
        x, z = images(4, seed), images(4, seed).reshape(4, 16) / np.float32(255)
        for _ in range(200):
            if (graphs.chain.run(x, ["x"])[0] != x).any():
                wrong.append("chain")
            if (graphs.encoder.run(x, ["mean"])[0] != z).any():
                wrong.append("encoder")
            if (graphs.decoder.run(z, ["x"])[0] != x).any():
                wrong.append("decoder")

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    places = {pair.second.input.there.address for pair in buckets(graphs.chain)}
    assert len(places) == len(threads)


def test_each_graph_runs_one_batch_at_a_time(graphs, monkeypatch):
    graphs.chain.run(images(1), ["x"])
    alone: list[bool] = []
    for graph in (graphs.encoder, graphs.decoder):
        lock = graph._one_at_a_time
        watched = SimpleNamespace(
            run_with_iobinding=lambda *_, lock=lock: alone.append(lock.locked())
        )
        monkeypatch.setattr(graph, "_session", watched)
    graphs.chain.run(images(1), ["x"])
    assert alone == [True, True]


def test_a_pair_is_made_and_recorded_while_nobody_uses_the_device(chain):
    chain.run(images(2), ["x"])
    thread = threading.Thread(target=chain.run, args=(images(4), ["x"]))
    with GPU.use():
        thread.start()
        while not GPU._changed._waiters:  # type: ignore[attr-defined]
            assert thread.is_alive()
        assert sizes(chain) == [2]
    thread.join()
    assert sizes(chain) == [2, 4]


def test_every_recording_has_a_number_of_its_own(toy):
    graphs = Graphs(toy, cuda_graph=True)  # which means nothing on a CPU
    graphs.chain.warm_up(2)
    in_thread(lambda: graphs.chain.warm_up(2))
    graphs.in_turn(images(2))
    for graph, of_pair in ((graphs.encoder, "first"), (graphs.decoder, "second")):
        made = [getattr(pair, of_pair) for pair in buckets(graphs.chain)]
        made += buckets(graph)
        numbers = {bucket.options.get_run_config_entry("gpu_graph_id") for bucket in made}
        assert numbers == {"1", "2", "3", "4", "5"}


def test_who_leaves_gives_its_pairs_back_and_closing_gives_back_all(chain):
    chain.warm_up(4)
    in_thread(lambda: chain.run(images(8), ["x"]))
    assert sizes(chain) == [1, 2, 4, 8]
    chain.leave()
    assert sizes(chain) == [8]
    chain.close()
    assert not buckets(chain)


def test_a_run_that_fails_harms_none_after_it(graphs, monkeypatch):
    def fail(bucket, copies) -> None:
        raise RuntimeError("out of memory")

    graphs.chain.run(images(3, seed=1), ["x"])
    for graph in (graphs.encoder, graphs.decoder):
        with monkeypatch.context() as broken:
            broken.setattr(graph, "compute", fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                graphs.chain.run(images(3, seed=2), ["x"])
        np.testing.assert_array_equal(graphs.chain.run(images(3), ["x"])[0], images(3))


def test_a_chain_is_held_against_its_graphs_in_every_bucket(toy, graphs):
    work = graphs.chain.run

    of_chain = golden.in_turn(graphs.encoder, graphs.decoder, golden.read(toy)[0], 64)
    assert of_chain.check(graphs.chain, 64) < 1e-6
    assert sizes(graphs.chain) == [1, 2, 4, 8, 16, 32, 64]

    def wrong_in_one_bucket(array, outputs):
        given = dict(zip(outputs, work(array, outputs), strict=True))
        return [given[name] + (name == "params" and len(array) == 64) for name in outputs]

    graphs.chain.run = wrong_in_one_bucket
    with pytest.raises(BundleError, match="params differs from the golden output by up to 1"):
        of_chain.check(graphs.chain, 64)
    of_chain.check(graphs.chain, 32)
