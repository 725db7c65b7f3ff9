"""Every kind of model exported, served by ONNX Runtime, and compared; broken ones refused."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from serving import bundle
from serving.models.loading import prepare
from serving.runtime.engine import Engine
from serving.runtime.provider import Provider
from serving.settings import Settings
from training import checkpoint, graphs
from training.__main__ import main
from training.model import POINT_LOG_VAR, VAE, render

Cli = Callable[..., tuple[int, str, str]]


def train(cli: Cli, out: Path, *flags: object) -> Path:
    tiny = ("--epochs", 2, "--hidden", 12, "--latent-size", 3)
    status, _, err = cli("train", "--out", out, *tiny, *flags)
    assert status == 0, err
    return out / "best.pt"


def export(cli: Cli, path: Path, bundles: Path, *flags: object) -> bundle.Bundle:
    status, out, err = cli(
        "export", "--checkpoint", path, "--bundles", bundles, "--name", "m", *flags
    )
    assert status == 0, err
    assert err == ""  # the exporter's chatter is hushed
    return bundle.load(Path(json.loads(out)["published"]))


def session(graph: bytes) -> ort.InferenceSession:
    return ort.InferenceSession(graph, providers=["CPUExecutionProvider"])


def source(folder: Path, shape: tuple[int, ...], dtype: str) -> str:
    rows = np.random.default_rng(0).integers(0, 256, (80, *shape), np.uint8)
    np.save(folder / "rows.npy", rows if dtype == "uint8" else np.float32(rows / 255))
    return f"npz:{folder / 'rows.npy'}"


@pytest.mark.parametrize(
    ("model", "net", "likelihood", "shape", "dtype"),
    [
        ("vae", "mlp", "gaussian", (6, 7), "uint8"),
        ("vae", "mlp", "bernoulli", (9,), "float32"),
        ("vae", "conv", "bernoulli", (9, 12), "uint8"),
        ("vae", "conv", "gaussian", (10, 13, 3), "float32"),
        ("vae", "conv", "discretised-logistic", (10, 13, 3), "uint8"),
        ("vae", "gated", "bernoulli", (6, 7), "uint8"),
        ("vae", "iwae", "gaussian", (9,), "float32"),
        ("ae", "mlp", "gaussian", (6, 7, 3), "float32"),
        ("ae", "conv", "bernoulli", (11, 8, 3), "uint8"),
    ],
)
def test_graphs_compute_what_pytorch_computes(
    cli: Cli,
    tmp_path: Path,
    model: str,
    net: str,
    likelihood: str,
    shape: tuple[int, ...],
    dtype: str,
) -> None:
    data = source(tmp_path, shape, dtype)
    flags = ("--data", data, "--model", model, "--net", net, "--likelihood", likelihood)
    path = train(cli, tmp_path / "run", *flags)
    exported = export(cli, path, tmp_path / "bundles")

    manifest, parameters = exported.manifest, bundle.LIKELIHOODS[likelihood]
    highest = 255.0 if dtype == "uint8" else 1.0
    kind = "vector" if len(shape) == 1 else "image"
    assert manifest.x == bundle.XSpec(kind, shape, dtype, (0.0, highest))
    assert (manifest.family, manifest.likelihood, manifest.latent_size) == (model, likelihood, 3)
    assert manifest.parity["rows"] == 80
    assert manifest.parity["test_rows"] == 8

    eager = checkpoint.load(path).model()
    encode, decode = (
        session(exported.files["encoder.onnx"]),
        session(exported.files["decoder.onnx"]),
    )
    assert [value.name for value in encode.get_inputs()] == ["x"]
    assert [value.name for value in encode.get_outputs()] == ["mean", "log_var"]
    assert [value.name for value in decode.get_inputs()] == ["z"]
    assert [value.name for value in decode.get_outputs()] == ["x", "params"]
    for batch in (1, 2, 3, 64, 1000):
        bytes_ = torch.randint(0, 256, (batch, *shape), dtype=torch.uint8)
        x = bytes_ if dtype == "uint8" else bytes_ / 255
        with torch.no_grad():
            mean, log_var = eager.encode(x)
            params = eager.decode(mean)
        got_mean, got_log_var = encode.run(None, {"x": x.numpy()})
        got_x, got_params = decode.run(None, {"z": mean.numpy()})
        assert got_params.shape == (batch, parameters, *shape)
        assert (got_x.dtype, got_x.shape) == (dtype, (batch, *shape))
        np.testing.assert_allclose(got_mean, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got_log_var, log_var, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got_params, params, rtol=1e-4, atol=1e-5)
        expected = render(eager, params).numpy().astype(np.float32)
        np.testing.assert_allclose(got_x, expected, atol=1 if dtype == "uint8" else 1e-5)
        if model == "ae":
            assert (got_log_var == POINT_LOG_VAR).all()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of the digits."""
    out = tmp_path_factory.mktemp("digits") / "run"
    tiny = ["--epochs", "2", "--hidden", "16", "--latent-size", "3"]
    assert main(["train", "--out", str(out), *tiny]) == 0
    return out / "best.pt"


@pytest.fixture(scope="module")
def exported(digits: Path) -> bundle.Bundle:
    """The digits' bundle, exported in a process of its own as a user would."""
    command = [sys.executable, "-m", "training", "export", "--checkpoint", digits]
    done = subprocess.run(
        [*command, "--bundles", digits.parent / "bundles", "--name", "m"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")  # the exporter's chatter is hushed
    return bundle.load(Path(json.loads(done.stdout)["published"]))


def test_the_bundle_is_complete(exported: bundle.Bundle) -> None:
    manifest = exported.manifest
    assert (manifest.model, manifest.version) == ("m", 1)
    assert manifest.training["config"]["data"] == "digits"
    parity = manifest.parity
    assert (parity["rows"], parity["test_rows"]) == (1000, 180)
    assert parity["batches"] == [1, 2, 3, 1000]
    assert set(parity["max_abs_difference"]) == {"mean", "log_var", "params", "x"}
    assert 0 <= parity["delta_elbo_nats"] <= 1e-3
    for name in ("encoder.onnx", "decoder.onnx"):
        graph = onnx.load_from_string(exported.files[name])
        onnx.checker.check_model(graph, full_check=True)
        assert {entry.key: entry.value for entry in graph.metadata_props} == {
            "model": "m",
            "created-by": "latentd",
        }
        assert graph.opset_import[0].version == manifest.opset
        for value in (*graph.graph.input, *graph.graph.output):
            assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_golden_vectors_are_what_the_graphs_give(exported: bundle.Bundle) -> None:
    with np.load(io.BytesIO(exported.files["golden.npz"]), allow_pickle=False) as file:
        golden = dict(file)
    assert set(golden) == {"x", "mean", "log_var", "z", "decoded_x", "params"}
    assert golden["x"].shape == (16, 8, 8)
    assert golden["x"].dtype == golden["decoded_x"].dtype == np.uint8
    mean, log_var = session(exported.files["encoder.onnx"]).run(None, {"x": golden["x"]})
    x, params = session(exported.files["decoder.onnx"]).run(None, {"z": golden["z"]})
    np.testing.assert_allclose(mean, golden["mean"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(log_var, golden["log_var"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(params, golden["params"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.float32(x), np.float32(golden["decoded_x"]), atol=1)


def test_the_next_export_is_the_next_version(
    cli: Cli, digits: Path, exported: bundle.Bundle
) -> None:
    again = export(cli, digits, exported.path.parent.parent)
    assert (exported.manifest.version, again.manifest.version) == (1, 2)
    assert again.files["golden.npz"] == exported.files["golden.npz"]


def test_an_evaluation_of_the_same_weights_goes_into_the_manifest(cli: Cli, tmp_path: Path) -> None:
    path = train(cli, tmp_path / "run", "--likelihood", "bernoulli", "--binarisation", "dynamic")
    assert export(cli, path, tmp_path / "bundles").manifest.evaluation == {}
    flags = ("--samples", 5, "--rows", 20, "--cache", tmp_path / "cache")
    assert cli("evaluate", path, *flags)[0] == 0
    found = export(cli, path, tmp_path / "bundles").manifest.evaluation
    assert found == json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (found["rows"], found["bound"]["samples"]) == (20, 5)
    other = train(cli, tmp_path / "other", "--seed", 1)
    (tmp_path / "run" / "evaluation.json").rename(tmp_path / "other" / "evaluation.json")
    assert export(cli, other, tmp_path / "bundles").manifest.evaluation == {}


def test_pictures_go_all_the_way(cli: Cli, picture_folder: Path, tmp_path: Path) -> None:
    """Not square, in colour, from files to a served graph."""
    data = f"images:{picture_folder}"
    path = train(cli, tmp_path / "run", "--data", data, "--net", "conv")
    exported = export(cli, path, tmp_path / "bundles")
    assert exported.manifest.x.shape == (11, 18, 3)
    x = np.zeros((5, 11, 18, 3), np.uint8)
    mean, _ = session(exported.files["encoder.onnx"]).run(None, {"x": x})
    again, _ = session(exported.files["decoder.onnx"]).run(None, {"z": mean})
    assert (again.shape, again.dtype) == (x.shape, x.dtype)


def break_graph(graph: bytes, factor: float) -> bytes:
    """The same graph with its largest weight matrix scaled."""
    model = onnx.load_from_string(graph)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    scaled = np.float32(onnx.numpy_helper.to_array(weight) * factor)
    weight.CopyFrom(onnx.numpy_helper.from_array(scaled, weight.name))
    return model.SerializeToString()


@pytest.mark.parametrize("which", ["encoder", "decoder"])
def test_lost_parity_publishes_nothing(
    cli: Cli, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    sound = getattr(graphs, which)
    monkeypatch.setattr(graphs, which, lambda *a, **k: break_graph(sound(*a, **k), 1.001))
    status, out, err = cli(
        "export", "--checkpoint", digits, "--bundles", tmp_path / "bundles", "--name", "m"
    )
    assert status == 1
    assert out == ""
    assert err.startswith("latentd-train: Parity failed: at batch 1, ")
    assert err.endswith("Nothing was published.\n")
    assert not (tmp_path / "bundles").exists()


def test_a_random_graph_is_not_published(
    cli: Cli, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a VAE exported with its noise inside would be."""
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


def graph_of(op: str, **attributes: Any) -> onnx.ModelProto:
    value = onnx.helper.make_tensor_value_info
    one = onnx.TensorProto.FLOAT
    batch = attributes.pop("batch", "batch")
    node = onnx.helper.make_node(op, ["a"], ["b"], **attributes)
    graph = onnx.helper.make_graph(
        [node], "g", [value("a", one, [batch, 2])], [value("b", one, [batch, 2])]
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (graph_of("Dropout"), "training mode: Dropout"),
        (graph_of("RandomNormalLike"), "training mode: RandomNormalLike"),
        (graph_of("Relu", batch=2), "a is frozen to one batch size"),
        (graph_of("NoSuchOperator"), "not valid ONNX"),
    ],
)
def test_graphs_that_cannot_be_served_are_refused(graph: onnx.ModelProto, words: str) -> None:
    graphs.check(graph_of("Relu"))
    with pytest.raises(graphs.RunFailed, match=words):
        graphs.check(graph)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--name", "My Model"], "--name 'My Model': use 1 to 64"),
        (["--data", "npz:nowhere.npy"], "nowhere.npy does not exist"),
        (["--data", "npz:{vectors}"], "this checkpoint was trained on uint8 (8, 8)"),
        (["--bundles", "{file}"], "cannot be written"),
    ],
)
def test_bad_export_flags_are_refused(
    cli: Cli, digits: Path, tmp_path: Path, flags: list[str], words: str
) -> None:
    vectors, file = tmp_path / "vectors.npy", tmp_path / "file"
    np.save(vectors, np.zeros((50, 5), np.uint8))
    file.touch()
    flags = [flag.format(vectors=vectors, file=file) for flag in flags]
    before = sorted(tmp_path.rglob("*"))
    status, _, err = cli(
        *("export", "--checkpoint", digits, "--bundles", tmp_path / "bundles", "--name", "m"),
        *flags,
    )
    assert status == 2
    assert words in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_data_that_moved_is_named_with_the_way_out(cli: Cli, tmp_path: Path) -> None:
    path = train(cli, tmp_path / "run", "--data", source(tmp_path, (4, 4), "uint8"))
    (tmp_path / "rows.npy").rename(tmp_path / "moved.npy")
    arguments = ("export", "--checkpoint", path, "--bundles", tmp_path / "b", "--name", "m")
    status, _, err = cli(*arguments)
    assert status == 2
    assert "rows.npy does not exist" in err
    assert "name some with --data" in err
    assert cli(*arguments, "--data", f"npz:{tmp_path / 'moved.npy'}")[0] == 0


@pytest.mark.parametrize("net", ["mlp", "conv"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_half_precision_stays_inside(cli: Cli, tmp_path: Path, net: str, likelihood: str) -> None:
    """Half the bytes; what goes in and comes out, and who may tell, are the same."""
    data_flag = ("--data", source(tmp_path, (12, 12), "uint8"))
    path = train(cli, tmp_path / "run", *data_flag, "--net", net, "--likelihood", likelihood)
    whole = export(cli, path, tmp_path / "bundles")
    half = export(cli, path, tmp_path / "bundles", "--precision", "float16")
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
    prepared = prepare(half, Engine(Provider("cpu")), Settings(max_batch_rows=8))
    assert 0 < prepared.golden_difference < 0.05


def test_half_precision_is_judged_too(
    cli: Cli, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = graphs.decoder
    monkeypatch.setattr(graphs, "decoder", lambda *a: break_half(sound(*a)))
    flags = ("--bundles", tmp_path / "bundles", "--name", "m", "--precision", "float16")
    status, _, err = cli("export", "--checkpoint", digits, *flags)
    assert status == 1
    assert err.startswith("latentd-train: Parity failed: at batch 1, ")


def break_half(graph: bytes) -> bytes:
    """The same graph with its largest weight matrix doubled."""
    model = onnx.load_from_string(graph)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    doubled = onnx.numpy_helper.to_array(weight) * np.float16(2)
    weight.CopyFrom(onnx.numpy_helper.from_array(doubled, weight.name))
    return model.SerializeToString()
