"""Bound graphs: buckets, padding, memory at fixed addresses. On the CPU provider, where host and
device memory are the same. test_cuda.py has the tests that need a GPU."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from latentd import bundle
from latentd.bundle import DECODER, ENCODER
from latentd.errors import BundleError
from latentd.models import loading
from latentd.runtime import golden
from latentd.runtime.capture_lock import CUDA_CAPTURE
from latentd.runtime.engine import SessionFactory
from latentd.runtime.io_binding import IOBindingGraph
from latentd.runtime.provider import Provider
from latentd.runtime.thread_buckets import bucket_rows
from tests.support.fake_device import bound_graph, bucket_sizes, buckets


@pytest.fixture(scope="module")
def toy(toy_bundles: Path) -> bundle.Bundle:
    return bundle.load(toy_bundles / "toy" / "1")


@pytest.fixture
def decoder(toy: bundle.Bundle) -> IOBindingGraph:
    return bound_graph(toy.files[DECODER], loading.signatures(toy.manifest)[1])


@pytest.fixture
def encoder(toy: bundle.Bundle) -> IOBindingGraph:
    return bound_graph(toy.files[ENCODER], loading.signatures(toy.manifest)[0])


def latents(toy: bundle.Bundle, rows: int, seed: int = 0) -> np.ndarray:
    shape = rows, *toy.manifest.default.z
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize(
    ("rows", "bucket"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (64, 64), (65, 128)]
)
def test_bucket_is_the_next_power_of_two(rows: int, bucket: int) -> None:
    assert bucket_rows(rows) == bucket


def test_batch_sizes(decoder: IOBindingGraph) -> None:
    assert decoder.batch_sizes(1) == [1]
    assert decoder.batch_sizes(9) == [1, 2, 4, 8, 16]
    assert decoder.batch_sizes(16) == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 13, 31])
def test_padding_changes_no_row(toy: bundle.Bundle, decoder: IOBindingGraph, rows: int) -> None:
    plain = SessionFactory(Provider("cpu")).load(
        toy.files[DECODER], loading.signatures(toy.manifest)[1], threads=1
    )
    z = latents(toy, rows)
    x, params = decoder.run(z, ["x", "params"])
    expected_x, expected_params = plain.run(z, ["x", "params"])
    assert (x.shape, x.dtype) == (expected_x.shape, expected_x.dtype)
    np.testing.assert_allclose(params, expected_params, rtol=1e-5, atol=1e-5)
    assert (decoder.run(z, ["x"])[0] == x).all()


def test_results_stay_when_the_buffers_are_reused(
    toy: bundle.Bundle, decoder: IOBindingGraph
) -> None:
    first = decoder.run(latents(toy, 3, seed=1), ["params"])[0]
    kept = first.copy()
    second = decoder.run(latents(toy, 3, seed=2), ["params"])[0]
    assert (first == kept).all()
    assert (first != second).any()


def test_batch_never_sees_the_rows_of_the_previous_one(
    toy: bundle.Bundle, decoder: IOBindingGraph
) -> None:
    alone = decoder.run(latents(toy, 3, seed=1), ["params"])[0]
    decoder.run(latents(toy, 4, seed=2), ["params"])  # the same bucket, full
    assert (decoder.run(latents(toy, 3, seed=1), ["params"])[0] == alone).all()


def test_memory_stays_at_the_same_addresses(toy: bundle.Bundle, decoder: IOBindingGraph) -> None:
    def addresses() -> set[int]:
        made = [(bucket.input, *bucket.outputs.values()) for bucket in buckets(decoder)]
        return {buffer.device.address for all_ in made for buffer in all_}

    decoder.warm_up(16)
    before = addresses()
    assert len(before) == 3 * 5  # input, x and params of 1, 2, 4, 8 and 16 rows
    for rows in (*range(1, 17), *range(16, 0, -1)):
        decoder.run(latents(toy, rows), ["x", "params"])
    assert addresses() == before


def test_threads_share_a_graph_but_no_buffer(toy: bundle.Bundle, decoder: IOBindingGraph) -> None:
    expected = {seed: decoder.run(latents(toy, 4, seed), ["params"])[0] for seed in range(4)}
    wrong: list[int] = []

    def ask(seed: int) -> None:
        for _ in range(200):
            if (decoder.run(latents(toy, 4, seed), ["params"])[0] != expected[seed]).any():
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    addresses = {bucket.input.device.address for bucket in buckets(decoder)}
    assert len(addresses) == 1 + len(threads)


def test_bucket_is_built_while_no_thread_uses_the_device(
    toy: bundle.Bundle, decoder: IOBindingGraph
) -> None:
    decoder.run(latents(toy, 2), ["x"])
    decoder.run(latents(toy, 2), ["x"])
    done = threading.Event()

    def ask() -> None:
        decoder.run(latents(toy, 4), ["x"])
        done.set()

    thread = threading.Thread(target=ask)
    with CUDA_CAPTURE.shared():
        thread.start()
        while not CUDA_CAPTURE._changed._waiters:  # type: ignore[attr-defined]
            assert thread.is_alive()
        assert bucket_sizes(decoder) == [2]
    thread.join()
    assert done.is_set()
    assert bucket_sizes(decoder) == [2, 4]


def test_release_thread_frees_only_its_own_buckets(
    toy: bundle.Bundle, decoder: IOBindingGraph
) -> None:
    for rows in (1, 2, 16):
        decoder.run(latents(toy, rows), ["x"])
    decoder.release_thread()
    assert not buckets(decoder)
    thread = threading.Thread(target=decoder.warm_up, args=(4,))
    thread.start()
    thread.join()
    assert bucket_sizes(decoder) == [1, 2, 4]
    decoder.close()
    assert not buckets(decoder)


def test_golden_vectors_run_in_every_bucket(
    toy: bundle.Bundle, encoder: IOBindingGraph, decoder: IOBindingGraph
) -> None:
    (of_encoder,), (of_decoder,), _ = golden.read(toy)
    assert 0 <= of_encoder.check(encoder, 64) < 1e-4
    assert 0 <= of_decoder.check(decoder, 64) < 1e-4
    assert bucket_sizes(decoder) == [1, 2, 4, 8, 16, 32, 64]

    work = decoder.run

    def wrong_in_one_bucket(array, outputs):
        x, params = work(array, outputs)
        return [x, params + (len(array) == 64)]

    decoder.run = wrong_in_one_bucket  # type: ignore[method-assign]
    with pytest.raises(BundleError, match="differs from the golden output"):
        of_decoder.check(decoder, 64)
    of_decoder.check(decoder, 32)
