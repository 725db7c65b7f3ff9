"""What an export publishes and what it rejects."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from latentd import bundle
from latentd.training import checkpoint
from tests.support.exports import export, session, source, train

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def exported(digits: Path) -> bundle.Bundle:
    """The bundle of the digits, exported in a separate process, as a user does."""
    command = [sys.executable, "-m", "latentd", "export", "--checkpoint", digits]
    done = subprocess.run(
        [*command, "--bundles", digits.parent / "bundles", "--name", "m"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")  # the exporter's own output is suppressed
    return bundle.load(Path(json.loads(done.stdout)["published"]))


def test_bundle_is_complete(exported: bundle.Bundle) -> None:
    manifest = exported.manifest
    assert (manifest.model, manifest.version) == ("m", 1)
    assert manifest.training["config"]["data"] == "digits"
    parity = manifest.parity
    assert (parity["rows"], parity["test_rows"]) == (1000, 180)
    assert parity["batches"] == [1, 2, 3, 1000]
    compared = {"mean", "log_var", "params", "x", "log_likelihood"}
    assert set(parity["max_abs_difference"]) == compared
    assert parity["max_abs_difference"]["log_likelihood"] <= 1e-3
    assert 0 <= parity["delta_elbo_nats"] <= 1e-3
    for name in ("encoder.onnx", "decoder.onnx", "likelihood.onnx"):
        graph = onnx.load_from_string(exported.files[name])
        onnx.checker.check_model(graph, full_check=True)
        assert {entry.key: entry.value for entry in graph.metadata_props} == {
            "model": "m",
            "created-by": "latentd",
        }
        assert graph.opset_import[0].version == manifest.opset
        for value in (*graph.graph.input, *graph.graph.output):
            assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_golden_vectors_equal_the_outputs_of_the_graphs(exported: bundle.Bundle) -> None:
    with np.load(io.BytesIO(exported.files["golden.npz"]), allow_pickle=False) as file:
        golden = dict(file)
    arrays = {"x", "mean", "log_var", "z", "decoded_x", "params", "log_likelihood"}
    assert set(golden) == arrays
    assert golden["x"].shape == (16, 8, 8)
    assert golden["x"].dtype == golden["decoded_x"].dtype == np.uint8
    mean, log_var = session(exported.files["encoder.onnx"]).run(None, {"x": golden["x"]})
    x, params = session(exported.files["decoder.onnx"]).run(None, {"z": golden["z"]})
    np.testing.assert_allclose(mean, golden["mean"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(log_var, golden["log_var"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(params, golden["params"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.float32(x), np.float32(golden["decoded_x"]), atol=1)
    twice = {"x": np.concatenate([golden["x"]] * 2), "params": golden["params"]}
    (found,) = session(exported.files["likelihood.onnx"]).run(["log_likelihood"], twice)
    np.testing.assert_allclose(found, golden["log_likelihood"], rtol=1e-5)


def test_next_export_is_the_next_version(cli: Cli, digits: Path, exported: bundle.Bundle) -> None:
    again = export(cli, digits, exported.path.parent.parent)
    assert (exported.manifest.version, again.manifest.version) == (1, 2)
    assert again.files["golden.npz"] == exported.files["golden.npz"]


def test_manifest_has_the_evaluation_of_the_same_weights(cli: Cli, tmp_path: Path) -> None:
    path = train(cli, tmp_path / "run", "--likelihood", "bernoulli", "--binarization", "dynamic")
    assert export(cli, path, tmp_path / "bundles").manifest.evaluation == {}
    flags = ("--importance-samples", 5, "--rows", 20, "--cache", tmp_path / "cache")
    assert cli("evaluate", path, *flags)[0] == 0
    found = export(cli, path, tmp_path / "bundles").manifest.evaluation
    assert found == json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (found["rows"], found["bound"]["samples"]) == (20, 5)
    other = train(cli, tmp_path / "other", "--seed", 1)
    (tmp_path / "run" / "evaluation.json").rename(tmp_path / "other" / "evaluation.json")
    assert export(cli, other, tmp_path / "bundles").manifest.evaluation == {}


def test_checkpoint_of_the_first_epoch_has_no_metrics(
    cli: Cli, digits: Path, tmp_path: Path
) -> None:
    """`--checkpoint-seconds` writes such a checkpoint during a long epoch."""
    saved = dataclasses.replace(checkpoint.load(digits), history=[])
    checkpoint.save(tmp_path / "last.pt", saved)
    exported = export(cli, tmp_path / "last.pt", tmp_path / "bundles")
    assert exported.manifest.training["metrics"] == {}


def test_resized_images_are_checked_on_rows_that_need_no_resizing(
    cli: Cli, picture_folder: Path, tmp_path: Path
) -> None:
    flags = ("--data", f"images:{picture_folder}", "--image-size", "8x9")
    path = train(cli, tmp_path / "run", *flags)
    rows = source(tmp_path, (8, 9, 3), "uint8")
    export(cli, path, tmp_path / "bundles", "--data", rows)
    few = ("--importance-samples", 2, "--cache", tmp_path / "cache")
    assert cli("evaluate", path, "--data", rows, *few)[0] == 0


def test_images_are_trained_exported_and_served(
    cli: Cli, picture_folder: Path, tmp_path: Path
) -> None:
    """Color images that are not square, from files to a served graph."""
    data = f"images:{picture_folder}"
    path = train(cli, tmp_path / "run", "--data", data, "--architecture", "resnet")
    exported = export(cli, path, tmp_path / "bundles")
    assert exported.manifest.default.x.shape == (11, 18, 3)
    x = np.zeros((5, 11, 18, 3), np.uint8)
    mean, _ = session(exported.files["encoder.onnx"]).run(None, {"x": x})
    again, _ = session(exported.files["decoder.onnx"]).run(None, {"z": mean})
    assert (again.shape, again.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--name", "My Model"], "--name 'My Model': use 1 to 64"),
        (["--data", "npz:nowhere.npy"], "nowhere.npy does not exist"),
        (
            ["--data", "npz:{vectors}"],
            "this checkpoint was trained on uint8 rows of shape (8, 8)",
        ),
        (["--bundles", "{file}"], "cannot be written"),
        (["--bundles", "{root}/m"], "of one model or version. Did you mean {root}?"),
    ],
)
def test_invalid_export_flags_are_rejected(
    cli: Cli, digits: Path, tmp_path: Path, flags: list[str], words: str
) -> None:
    vectors, file = tmp_path / "vectors.npy", tmp_path / "file"
    np.save(vectors, np.full((50, 5), 200, np.uint8))
    file.touch()
    root = tmp_path / "models"
    (root / "m" / "1").mkdir(parents=True)
    (root / "m" / "1" / "manifest.json").touch()
    flags = [flag.format(vectors=vectors, file=file, root=root) for flag in flags]
    before = sorted(tmp_path.rglob("*"))
    status, _, err = cli(
        *("export", "--checkpoint", digits, "--bundles", tmp_path / "bundles", "--name", "m"),
        *flags,
    )
    assert status == 2
    assert words.format(root=root) in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_moved_data_is_reported_with_advice(cli: Cli, tmp_path: Path) -> None:
    path = train(cli, tmp_path / "run", "--data", source(tmp_path, (4, 4), "uint8"))
    (tmp_path / "rows.npy").rename(tmp_path / "moved.npy")
    arguments = ("export", "--checkpoint", path, "--bundles", tmp_path / "b", "--name", "m")
    status, _, err = cli(*arguments)
    assert status == 2
    assert "rows.npy does not exist" in err
    assert "name some with --data" in err
    assert cli(*arguments, "--data", f"npz:{tmp_path / 'moved.npy'}")[0] == 0
