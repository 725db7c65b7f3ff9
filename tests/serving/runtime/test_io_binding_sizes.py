"""Bound graphs with rows of several lengths: a bucket for each shape, in limited memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from latentd import bundle
from latentd.bundle import DECODER, ENCODER
from latentd.models import loading
from latentd.runtime import thread_buckets
from latentd.runtime.io_binding import IOBindingGraph
from latentd.runtime.thread_buckets import Key
from tests.support.fake_device import bound_graph, buckets
from tests.support.spatial_bundle import blocks, decoded, encoded, publish_spatial

SIZES = [(16, 16), (48, 24), (24, 48), (128, 96)]
SQUARE, WIDE, HIGH = (32, 32), (16, 64), (64, 16)  # as many pixels
LARGE = (64, 64)  # four times as many


@pytest.fixture(scope="module")
def spatial(tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    return bundle.load(publish_spatial(tmp_path_factory.mktemp("bundles")))


@pytest.fixture
def encoder(spatial: bundle.Bundle) -> Iterator[IOBindingGraph]:
    graph = bound_graph(spatial.files[ENCODER], loading.signatures(spatial.manifest)[0])
    yield graph
    graph.close()


@pytest.fixture
def decoder(spatial: bundle.Bundle) -> Iterator[IOBindingGraph]:
    graph = bound_graph(spatial.files[DECODER], loading.signatures(spatial.manifest)[1])
    yield graph
    graph.close()


def keys(graph: IOBindingGraph) -> list[Key]:
    """The buckets of this thread, the one used longest ago first."""
    (state,) = graph._thread_buckets
    return list(state.buckets)


def key(size: tuple[int, int], rows: int = 1) -> Key:
    """The encoder's bucket of images of this size."""
    return rows, (*size, 3)


def encode(graph: IOBindingGraph, size: tuple[int, int], rows: int = 1, seed: int = 0) -> None:
    """Encode images of one size; the latents must be right."""
    x = blocks(rows, *size, seed)
    (mean,) = graph.run(x, ["mean"])
    np.testing.assert_allclose(mean, encoded(x), rtol=0, atol=1e-5)


@pytest.fixture
def room_for_two(encoder: IOBindingGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for two buckets of one SQUARE, WIDE or HIGH image, and not for three."""
    encode(encoder, SQUARE)
    (bucket,) = buckets(encoder)
    monkeypatch.setattr(thread_buckets, "MAX_BYTES", 2 * bucket.nbytes)
    encoder.release_thread()


def test_rows_of_several_lengths(encoder: IOBindingGraph, decoder: IOBindingGraph) -> None:
    for seed, rows in enumerate((1, 3, 2)):
        for size in SIZES:
            x = blocks(rows, *size, seed)
            mean, log_var = encoder.run(x, ["mean", "log_var"])
            np.testing.assert_allclose(mean, encoded(x), rtol=0, atol=1e-5)
            assert log_var.shape == mean.shape
            (made,) = decoder.run(mean, ["x"])
            assert made.shape == x.shape
            assert np.abs(made.astype(int) - decoded(mean)).max() <= 1
    assert sorted(keys(encoder)) == sorted(key(size, rows) for size in SIZES for rows in (1, 2, 4))


@pytest.mark.usefixtures("room_for_two")
def test_bucket_used_longest_ago_is_freed(encoder: IOBindingGraph) -> None:
    encode(encoder, SQUARE)
    encode(encoder, WIDE)
    square, wide = buckets(encoder)
    encode(encoder, SQUARE, seed=1)
    assert keys(encoder) == [key(WIDE), key(SQUARE)]
    encode(encoder, HIGH)
    assert keys(encoder) == [key(SQUARE), key(HIGH)]
    freed = [buffer.device.address for buffer in (wide.input, *wide.outputs.values())]
    assert freed == [0] * 3
    assert square.input.device.address


@pytest.mark.usefixtures("room_for_two")
def test_freed_bucket_is_built_again(encoder: IOBindingGraph) -> None:
    for seed, size in enumerate([SQUARE, WIDE, HIGH] * 2):  # each one has just been freed
        encode(encoder, size, seed=seed)
        assert keys(encoder)[-1] == key(size)
        assert len(buckets(encoder)) == min(seed + 1, 2)


@pytest.mark.usefixtures("room_for_two")
def test_bucket_beyond_the_limit_is_the_only_one(encoder: IOBindingGraph) -> None:
    encode(encoder, SQUARE)
    encode(encoder, WIDE)
    encode(encoder, LARGE)
    assert keys(encoder) == [key(LARGE)]
    encode(encoder, LARGE, seed=1)
    encode(encoder, SQUARE, seed=1)
    assert keys(encoder) == [key(SQUARE)]
