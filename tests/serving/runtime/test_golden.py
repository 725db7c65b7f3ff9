"""Golden vectors must be able to prove something, and run in the batch sizes that serve."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest

from latentd import bundle
from latentd.errors import BundleError
from latentd.models import loading
from latentd.runtime import golden
from latentd.runtime.engine import SessionFactory
from latentd.runtime.provider import Provider
from latentd.settings import Settings
from tests.support import bad_bundles
from tests.support.onnx_graphs import npz

ROWS = np.zeros((2, 16), np.float32)


@pytest.fixture
def files(toy_bundles):
    return bundle.load(toy_bundles / "toy" / "1").files


@pytest.fixture
def load(publish_toy, tmp_path):
    """Load the toy with some files replaced, for batches of 64 rows."""

    def load(**replaced: bytes) -> loading.LoadedModel:
        loaded = bundle.load(publish_toy(tmp_path, **replaced))
        return loading.load_model(
            loaded, SessionFactory(Provider("cpu")), Settings(max_batch_rows=64)
        )

    return load


REFUSED = {
    "no rows": (bad_bundles.of_no_rows, "x has 0 row.*at least 2"),
    "one row of z": (
        lambda good: bad_bundles.golden_with(good, z=ROWS[:1]),
        "z has 1 row.*at least 2",
    ),
    "fewer means than rows": (
        lambda good: bad_bundles.golden_with(good, mean=ROWS[:1]),
        "mean has 1 rows, but x has 2",
    ),
    "another latent size": (
        lambda good: bad_bundles.golden_with(good, log_var=np.zeros((2, 3), np.float32)),
        r"log_var has dtype float32 and shape \(2, 3\), expected float32 and \(rows, 16\)",
    ),
    "another dtype": (
        lambda good: bad_bundles.golden_with(good, z=np.zeros((2, 16))),
        r"z has dtype float64",
    ),
    "one number": (
        lambda good: bad_bundles.golden_with(good, z=np.float32(0)),
        r"z has dtype float32 and shape \(\)",
    ),
    "objects": (
        lambda good: bad_bundles.golden_with(good, z=np.array([None, None])),
        "z has dtype object",
    ),
    "more rows than it has": (lambda good: bad_bundles.said_to_hold(good, 2), "cannot be read"),
    "a truncated file": (lambda good: good[:-30], "cannot be read"),
}


@pytest.mark.parametrize(("alter", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_golden_vectors_are_rejected_when_they_prove_nothing(load, files, alter, message):
    with pytest.raises(BundleError, match=message) as error:
        load(golden_npz=alter(files[bundle.GOLDEN]))
    assert error.value.reason == "golden"


@pytest.mark.parametrize("gibibytes", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_huge_golden_file_is_rejected_before_it_is_unpacked(
    publish_toy, tmp_path, files, gibibytes
):
    data = bad_bundles.bomb(files[bundle.GOLDEN], gibibytes)
    loaded = bundle.load(publish_toy(tmp_path, golden_npz=data))
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match=r"mean has 2 rows, but x has \d+"):
            golden.read(loaded)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_golden_vectors_are_rejected_when_too_large(load, files, monkeypatch):
    monkeypatch.setattr(golden, "MAX_BYTES", 100)
    with pytest.raises(BundleError, match="would unpack to"):
        load(golden_npz=files[bundle.GOLDEN])


def test_negated_decoder_is_rejected(load, files):
    with pytest.raises(BundleError, match="differs from the golden output"):
        load(decoder_onnx=bad_bundles.negated(files[bundle.DECODER]))


@pytest.mark.parametrize("rows", [2, 17, 63])
def test_graph_is_rejected_when_only_large_batches_are_wrong(load, files, rows):
    with pytest.raises(BundleError, match=r"differs from the golden output .* in a batch of 64"):
        load(decoder_onnx=bad_bundles.wrong_beyond(files[bundle.DECODER], rows))
    load(decoder_onnx=bad_bundles.wrong_beyond(files[bundle.DECODER], 64))


def test_other_likelihood_is_rejected(load, files):
    other = bad_bundles.negated(files[bundle.LIKELIHOOD], "params")
    with pytest.raises(BundleError, match="log_likelihood differs from the golden output"):
        load(likelihood_onnx=other)


def test_log_likelihood_is_required(load, files):
    with np.load(io.BytesIO(files[bundle.GOLDEN])) as file:
        kept = {name: array for name, array in file.items() if name != "log_likelihood"}
    with pytest.raises(BundleError, match=r"cannot be read: .*log_likelihood.npy"):
        load(golden_npz=npz(**kept))


def test_other_batch_sizes_run_until_the_time_is_used_up(files, toy_bundles, monkeypatch):
    ran: list[int] = []
    _, (of_decoder,), _ = golden.read(bundle.load(toy_bundles / "toy" / "1"))

    class Exact:
        """A graph with the expected outputs."""

        def batch_sizes(self, max_rows):
            return []

        def run(self, array, outputs):
            ran.append(len(array))
            return [
                np.resize(of_decoder.outputs[o], (len(array), *of_decoder.outputs[o].shape[1:]))
                for o in outputs
            ]

    of_decoder.check(Exact(), 600)
    assert ran == [2, 1, 600, 4, 8, 16, 32, 64, 128, 256, 512]
    ran.clear()
    monkeypatch.setattr(golden, "MORE_SIZES_SECONDS", -1.0)
    of_decoder.check(Exact(), 600)
    assert ran == [2, 1, 600]
