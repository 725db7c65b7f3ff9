"""A model with free axes: rows of many sizes at once, what they cost, and which do not load."""

from __future__ import annotations

import io
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from latentd import bundle
from latentd.client import Client
from latentd.errors import BundleError, InvalidArgument
from latentd.models.loading import LoadedModel, load_model
from latentd.models.profile import MeasuredProfile, SizeProfile, sizes_to_measure
from latentd.runtime.engine import SessionFactory
from latentd.runtime.profiling import BatchTiming
from latentd.runtime.provider import Provider
from latentd.settings import Settings
from latentd.shapes import Axis
from tests.support.onnx_graphs import npz
from tests.support.spatial_bundle import (
    X_SHAPE,
    blocks,
    publish_spatial,
    spatial_files,
    spatial_manifest,
)

SIZES = [(16, 16), (24, 40), (32, 32), (64, 16), (96, 96), (256, 128)]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return publish_spatial(tmp_path_factory.mktemp("sizes"))


@pytest.fixture(scope="module")
def server(path, module_servers):
    return module_servers(path.parents[1], provider="cpu", max_batch_latency_ms=5)


def test_bits_of_a_row_are_the_same_alone_and_amid_other_shapes(path, server):
    """Every answer equals a plain run of its rows alone, whatever ran beside them."""
    loaded = bundle.load(path)
    encode = ort.InferenceSession(loaded.files[bundle.ENCODER])
    decode = ort.InferenceSession(loaded.files[bundle.DECODER])

    def ask(seed: int) -> None:
        choose = random.Random(seed)
        with Client(server.target) as client:
            for number in range(25):
                x = blocks(choose.randint(1, 5), *choose.choice(SIZES), seed=seed * 100 + number)
                x = x ^ np.uint8(seed)  # no two callers send the same rows
                mean = np.concatenate([encode.run(["mean"], {"x": row[None]})[0] for row in x])
                assert (client.encode(x).mean == mean).all()
                pixels = np.concatenate([decode.run(["x"], {"z": row[None]})[0] for row in mean])
                assert (client.reconstruct(x).x == pixels).all()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    few = server.metric("latentd_batch_rows_bucket", graph="decoder", le="1.0")
    assert server.metric("latentd_batch_rows_count", graph="decoder") > few, "no rows were batched"


def test_sample_is_a_function_of_seed_row_and_size(server):
    with Client(server.target) as client:
        whole = client.sample(6, seed=3, sizes={"h": 48, "w": 16}, include_z=True)
        part = client.sample(2, seed=3, offset=4, sizes={"h": 48, "w": 16})
        assert whole.x.shape == (6, 48, 16, 3)
        assert whole.z.shape == (6, 4, 6, 2)
        assert (whole.x[4:] == part.x).all()
        # As many numbers, in another shape: the same noise.
        turned = client.sample(6, seed=3, sizes={"h": 16, "w": 48}, include_z=True)
        assert (turned.z.ravel() == whole.z.ravel()).all()


def test_costs_of_several_sizes_are_published(server):
    with Client(server.target) as client:
        profiles = [p for p in client.get_model().profiles if p.graph == "decoder"]
    assert [p.x_shape for p in profiles] == [
        *((16, 16, 3), (32, 32, 3), (64, 64, 3), (128, 128, 3), (256, 256, 3)),
    ]
    assert profiles[0].max_batch_rows > profiles[-1].max_batch_rows


def test_row_that_would_not_fit_into_memory_is_rejected_before_it_runs(tmp_path, start_server):
    axes = {name: Axis(name, 8, min=16, max=2048, default=32) for name in ("h", "w")}
    publish_spatial(tmp_path, axes=axes)
    server = start_server(tmp_path, provider="cpu", run_memory_mib=6)
    with Client(server.target) as client:
        assert client.encode(blocks(1, 16, 16)).mean.shape == (1, 4, 2, 2)
        ran = server.metric("latentd_batch_rows_count", graph="encoder")
        with pytest.raises(InvalidArgument, match=r"more memory than .* raise --run-memory-mib"):
            client.encode(blocks(1, 2048, 2048))
        with pytest.raises(InvalidArgument, match=r"^sizes: a row of 12,582,912 numbers needs"):
            client.sample(1, sizes={"h": 2048, "w": 2048})
        assert server.metric("latentd_batch_rows_count", graph="encoder") == ran


def test_budget_below_the_smallest_row_leaves_only_that_size(tmp_path, start_server):
    publish_spatial(tmp_path)
    with Client(start_server(tmp_path, provider="cpu", run_memory_mib=1).target) as client:
        assert client.encode(blocks(1, 16, 16)).mean.shape == (1, 4, 2, 2)
        with pytest.raises(InvalidArgument, match="the limit is 768 numbers"):
            client.sample(1, sizes={"h": 256, "w": 256})


def load(root: Path, files: dict[str, bytes]) -> LoadedModel:
    published = bundle.publish(root, spatial_manifest(), files)
    settings = Settings(provider="cpu", workers=1)
    return load_model(bundle.load(published), SessionFactory(Provider("cpu")), settings)


def test_graph_frozen_to_one_size_is_rejected(tmp_path):
    files = spatial_files()
    graph = onnx.load_from_string(files[bundle.ENCODER])
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 32
    files[bundle.ENCODER] = graph.SerializeToString()
    with pytest.raises(BundleError, match=r"it is frozen to one h\. The manifest says \[h, w, 3\]"):
        load(tmp_path, files)


def test_golden_vectors_at_one_size_only_are_rejected(tmp_path):
    files = spatial_files()
    with np.load(io.BytesIO(files[bundle.GOLDEN])) as arrays:
        default = {name: arrays[name] for name in arrays.files if not name.startswith("1.")}
    files[bundle.GOLDEN] = npz(**default)
    with pytest.raises(BundleError, match="vectors at one size only"):
        load(tmp_path, files)


def test_graph_that_is_wrong_at_another_size_is_rejected(tmp_path):
    files = spatial_files()
    with np.load(io.BytesIO(files[bundle.GOLDEN])) as arrays:
        changed = {name: arrays[name] for name in arrays.files}
    changed["1.decoded_x"] = changed["1.decoded_x"] ^ np.uint8(128)
    files[bundle.GOLDEN] = npz(**changed)
    with pytest.raises(BundleError, match="x differs from the golden output"):
        load(tmp_path, files)


def profile(seconds: dict[int, float], run_bytes: int = 0) -> MeasuredProfile:
    """Seconds of a batch of one row, by the elements of a row."""
    sizes = [SizeProfile((n,), n, [BatchTiming(1, s)], run_bytes * n) for n, s in seconds.items()]
    return MeasuredProfile(0, 1, 256, sizes)


def test_cost_of_a_row_is_interpolated_between_measured_sizes():
    measured = profile({100: 0.001, 400: 0.004, 1600: 0.032})
    assert [measured.scale(n) for n in (100, 200, 400, 1600)] == [1, 2, 4, 32]
    assert 4 < measured.scale(800) < 32
    assert measured.scale(6400) == 256, "beyond the last size its growth goes on"
    assert [measured.max_batch_rows(n) for n in (100, 400, 6400, 10**6)] == [256, 64, 1, 1]


def test_cost_grows_at_least_with_the_elements_beyond_the_last_size():
    assert profile({100: 0.001, 400: 0.001}).scale(4000) == 10
    assert profile({100: 0.001}).scale(4000) == 40


def test_largest_row_that_fits_into_memory():
    measured = profile({1 << 20: 0.001, 1 << 22: 0.004}, run_bytes=16)
    limit = measured.max_elements(1 << 30)
    assert measured.run_bytes(limit) <= 1 << 30 < measured.run_bytes(limit + 1)
    assert profile({100: 0.001}).max_elements(1) == 0, "unknown"


def test_measured_sizes_span_the_axes():
    manifest = spatial_manifest()
    assert [s.x.shape[:2] for s in sizes_to_measure(manifest)] == [
        *((16, 16), (32, 32), (64, 64), (128, 128), (256, 256)),
    ]
    assert all(len(s.x.shape) == len(X_SHAPE) for s in sizes_to_measure(manifest))
