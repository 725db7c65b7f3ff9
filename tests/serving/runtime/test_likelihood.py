"""The likelihood runs on any number of rows, and only a graph of the right inputs is loaded."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from latentd import bundle
from latentd.bundle import DataSpec
from latentd.errors import BundleError
from latentd.models import likelihood_graphs
from latentd.runtime import likelihood
from latentd.runtime.likelihood import LikelihoodGraph
from tests.support.likelihoods import likelihood_graph

ROWS = 21


@pytest.fixture
def toy(toy_bundles) -> LikelihoodGraph:
    loaded = likelihood_graphs.load(bundle.load(toy_bundles / "toy" / "1"))
    assert loaded
    return loaded


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (ROWS, 4, 4), np.uint8)
    return x, rng.normal(0, 4, (ROWS, 1, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("elements", [1, 16, 17, 100, 16 * ROWS, 1 << 20])
def test_rows_have_the_same_density_in_runs_of_any_size(toy, rows, monkeypatch, elements):
    x, params = rows
    logits = params[:, 0].astype(np.float64)
    expected = (x / 255 * logits - np.logaddexp(0, logits)).sum(axis=(1, 2))
    whole = toy.log_prob(x, params)
    assert (whole.dtype, whole.shape) == (np.float64, (ROWS,))
    np.testing.assert_allclose(whole, expected, rtol=1e-6)
    monkeypatch.setattr(likelihood, "_BLOCK", elements)
    assert toy.log_prob(x, params).tolist() == whole.tolist()


REFUSED = {
    "an encoder": (bundle.ENCODER, r"takes \['x'\] and gives \['log_var', 'mean'\]; expected"),
    "a decoder": (bundle.DECODER, r"takes \['z'\] and gives \['params', 'x'\]; expected"),
}


@pytest.mark.parametrize(("file", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_other_graph_is_rejected(publish_toy, toy_bundles, tmp_path, file, said):
    other = bundle.load(toy_bundles / "toy" / "1").files[file]
    with pytest.raises(BundleError, match=said) as error:
        likelihood_graphs.load(bundle.load(publish_toy(tmp_path, likelihood_onnx=other)))
    assert error.value.reason == "signature"


@pytest.mark.parametrize(
    ("name", "x", "said"),
    [
        ("bernoulli", DataSpec("image", (4, 4), "float32", (0.0, 1.0)), r"x is tensor\(float\)"),
        ("bernoulli", DataSpec("image", (4, 5), "uint8", (0.0, 255.0)), r"not uint8 of shape"),
        ("gaussian", DataSpec("image", (4, 4), "uint8", (0.0, 255.0)), r"rows, 1, 4, 4\]"),
    ],
)
def test_likelihood_of_other_rows_is_rejected(publish_toy, tmp_path, name, x, said):
    graph = likelihood_graph(name, x)
    with pytest.raises(BundleError, match=said):
        likelihood_graphs.load(bundle.load(publish_toy(tmp_path, likelihood_onnx=graph)))


def test_graph_with_weights_in_another_file_is_rejected(publish_toy, toy_bundles, tmp_path):
    model = onnx.load_model_from_string(
        bundle.load(toy_bundles / "toy" / "1").files[bundle.LIKELIHOOD]
    )
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    graph = model.SerializeToString()
    with pytest.raises(BundleError) as error:
        likelihood_graphs.load(bundle.load(publish_toy(tmp_path, likelihood_onnx=graph)))
    assert error.value.reason == "external"
