"""Each kind of model computes the same in ONNX Runtime as in PyTorch, or is not published."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from latentd import bundle
from latentd.models.loading import load_model
from latentd.runtime.engine import SessionFactory
from latentd.runtime.provider import Provider
from latentd.settings import Settings
from latentd.shapes import Shape
from latentd.training import checkpoint, onnx_graphs, parity
from latentd.training.dataset import Dataset, Rows
from latentd.training.model import VAE, to_data
from tests.support import bad_bundles
from tests.support.exports import export, session, source, train
from tests.support.likelihoods import LIKELIHOODS

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("model", "net", "likelihood", "shape", "dtype"),
    [
        ("vae", "mlp", "gaussian", (6, 7), "uint8"),
        ("vae", "mlp", "bernoulli", (9,), "float32"),
        ("vae", "resnet", "bernoulli", (9, 12), "uint8"),
        ("vae", "resnet", "gaussian", (10, 13, 3), "float32"),
        ("vae", "resnet", "discretized-logistic", (10, 13, 3), "uint8"),
        ("vae", "gated", "bernoulli", (6, 7), "uint8"),
        ("vae", "iwae", "gaussian", (9,), "float32"),
        ("ae", "mlp", "gaussian", (6, 7, 3), "float32"),
        ("ae", "resnet", "bernoulli", (11, 8, 3), "uint8"),
    ],
)
def test_graphs_compute_the_same_as_pytorch(
    cli: Cli,
    tmp_path: Path,
    model: str,
    net: str,
    likelihood: str,
    shape: tuple[int, ...],
    dtype: str,
) -> None:
    data = source(tmp_path, shape, dtype)
    flags = ("--data", data, "--model", model, "--architecture", net, "--likelihood", likelihood)
    path = train(cli, tmp_path / "run", *flags)
    exported = export(cli, path, tmp_path / "bundles")

    manifest, known = exported.manifest, LIKELIHOODS[likelihood]
    highest = 255.0 if dtype == "uint8" else 1.0
    kind = "vector" if len(shape) == 1 else "image"
    assert manifest.default.x == bundle.DataSpec(kind, shape, dtype, (0.0, highest), known.bounded)
    known = dataclasses.replace(known, contributions=Shape.parse(shape))
    assert (manifest.likelihood, manifest.default.z) == (known, (3,))
    assert (manifest.posterior, manifest.prior) == (
        ("gaussian", "standard-normal") if model == "vae" else ("point", None)
    )
    assert manifest.parity["rows"] == 80
    assert manifest.parity["test_rows"] == 8

    eager = checkpoint.load(path).model()
    encode, decode = (
        session(exported.files["encoder.onnx"]),
        session(exported.files["decoder.onnx"]),
    )
    assert [value.name for value in encode.get_inputs()] == ["x"]
    encoded = ["mean", "log_var"] if model == "vae" else ["mean"]
    assert [value.name for value in encode.get_outputs()] == encoded
    assert [value.name for value in decode.get_inputs()] == ["z"]
    assert [value.name for value in decode.get_outputs()] == ["x", "params"]
    for batch in (1, 2, 3, 64, 1000):
        bytes_ = torch.randint(0, 256, (batch, *shape), dtype=torch.uint8)
        x = bytes_ if dtype == "uint8" else bytes_ / 255
        with torch.no_grad():
            mean, log_var = eager.encode(x)
            params = eager.decode(mean)
        got_mean, *got_log_var = encode.run(None, {"x": x.numpy()})
        got_x, got_params = decode.run(None, {"z": mean.numpy()})
        assert got_params.shape == (batch, len(known.parameters), *shape)
        assert (got_x.dtype, got_x.shape) == (dtype, (batch, *shape))
        np.testing.assert_allclose(got_mean, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got_params, params, rtol=1e-4, atol=1e-5)
        expected = to_data(eager, params).numpy().astype(np.float32)
        np.testing.assert_allclose(got_x, expected, atol=1 if dtype == "uint8" else 1e-5)
        if model == "vae":
            np.testing.assert_allclose(got_log_var[0], log_var, rtol=1e-4, atol=1e-5)


def break_graph(graph: bytes, factor: float) -> bytes:
    """The same graph with its largest weight matrix scaled."""
    model = onnx.load_from_string(graph)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    scaled = np.float32(onnx.numpy_helper.to_array(weight) * factor)
    weight.CopyFrom(onnx.numpy_helper.from_array(scaled, weight.name))
    return model.SerializeToString()


def test_nothing_is_published_with_another_density(
    cli: Cli, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = onnx_graphs.likelihood
    monkeypatch.setattr(
        onnx_graphs, "likelihood", lambda *a, **k: bad_bundles.negated(sound(*a, **k), "params")
    )
    flags = ("--checkpoint", digits, "--bundles", tmp_path / "bundles", "--name", "m")
    status, _, err = cli("export", *flags)
    assert status == 1
    assert err.startswith("latentd: Parity failed: log_likelihood of x (8, 8) from ONNX Runtime")
    assert not (tmp_path / "bundles").exists()


@pytest.mark.parametrize("which", ["encoder", "decoder"])
def test_nothing_is_published_without_parity(
    cli: Cli, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    sound = getattr(onnx_graphs, which)
    monkeypatch.setattr(onnx_graphs, which, lambda *a, **k: break_graph(sound(*a, **k), 1.001))
    status, out, err = cli(
        "export", "--checkpoint", digits, "--bundles", tmp_path / "bundles", "--name", "m"
    )
    assert status == 1
    assert out == ""
    assert err.startswith("latentd: Parity failed: at batch 1, ")
    assert err.endswith("Nothing was published.\n")
    assert not (tmp_path / "bundles").exists()


def test_random_graph_is_not_published(
    cli: Cli, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a graph results from a VAE exported together with its noise."""
    encode = VAE.encode

    def noisy(self: VAE, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_var = encode(self, x)
        return mean + torch.randn_like(mean), log_var

    monkeypatch.setattr(VAE, "encode", noisy)
    status, _, err = cli(
        "export", "--checkpoint", digits, "--bundles", tmp_path / "bundles", "--name", "m"
    )
    assert status == 1
    assert "random or in training mode: Random" in err
    assert not (tmp_path / "bundles").exists()


@pytest.mark.parametrize("net", ["mlp", "resnet"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_half_precision_is_only_inside_the_graph(
    cli: Cli, tmp_path: Path, net: str, likelihood: str
) -> None:
    """The weights take half the bytes. Inputs and outputs keep their types and shapes."""
    data_flag = ("--data", source(tmp_path, (12, 12), "uint8"))
    path = train(
        cli, tmp_path / "run", *data_flag, "--architecture", net, "--likelihood", likelihood
    )
    whole = export(cli, path, tmp_path / "bundles")
    half = export(cli, path, tmp_path / "bundles", "--precision", "fp16")
    assert (whole.manifest.precision, half.manifest.precision) == ("float32", "float16")
    assert half.manifest.parity["delta_elbo_nats"] < 0.1
    assert half.manifest.parity["atol"] > whole.manifest.parity["atol"]
    rows = np.random.default_rng(1).integers(0, 256, (5, 12, 12), np.uint8)
    for file, takes, array in (
        (bundle.ENCODER, "x", rows),
        (bundle.DECODER, "z", np.float32(rows[:, 0, :3]) / 100),
    ):
        weights = {w.data_type for w in onnx.load_from_string(half.files[file]).graph.initializer}
        assert onnx.TensorProto.FLOAT16 in weights
        outputs = [session(b.files[file]).run(None, {takes: array}) for b in (whole, half)]
        for one, other in zip(*outputs, strict=True):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            atol = 4 if one.dtype == np.uint8 else 0.05
            np.testing.assert_allclose(np.float64(one), np.float64(other), rtol=0.02, atol=atol)
    loaded = load_model(half, SessionFactory(Provider("cpu")), Settings(max_batch_rows=8))
    assert 0 < loaded.golden_max_abs_error < 0.05


def test_half_precision_is_checked_for_parity(
    cli: Cli, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = onnx_graphs.decoder
    monkeypatch.setattr(onnx_graphs, "decoder", lambda *a: break_half(sound(*a)))
    flags = ("--bundles", tmp_path / "bundles", "--name", "m", "--precision", "float16")
    status, _, err = cli("export", "--checkpoint", digits, *flags)
    assert status == 1
    assert err.startswith("latentd: Parity failed: at batch 1, ")


def break_half(graph: bytes) -> bytes:
    """The same graph with its largest weight matrix doubled."""
    model = onnx.load_from_string(graph)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    doubled = onnx.numpy_helper.to_array(weight) * np.float16(2)
    weight.CopyFrom(onnx.numpy_helper.from_array(doubled, weight.name))
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("shape", "rows", "largest"),
    [((28, 28), 1000, 1000), ((64, 64, 3), 1000, 341), ((256, 256, 3), 341, 21)],
)
def test_check_needs_little_memory_for_any_number_and_size_of_rows(
    shape: tuple[int, ...], rows: int, largest: int
) -> None:
    def many(count: int) -> Rows:
        return Rows(torch.zeros(1, *shape, dtype=torch.uint8).expand(count, *shape), None)

    x, counts = parity.rows(Dataset(many(1 << 40), many(1 << 40), many(10), False, ""))
    assert x.shape == (rows, *shape)
    assert counts == {"rows": rows, "test_rows": 10}
    assert parity.batch_sizes(shape) == (1, 2, 3, largest)
