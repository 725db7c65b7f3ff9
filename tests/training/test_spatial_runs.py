"""Models with spatial latents, from color crops to a bundle that serves every size."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from latentd import bundle
from latentd.models.loading import load_model
from latentd.runtime.engine import SessionFactory
from latentd.runtime.provider import Provider
from latentd.settings import Settings
from latentd.shapes import Axis
from latentd.training import checkpoint
from latentd.training.model import to_data
from tests.support.crops import write_crops
from tests.support.exports import export, session

Cli = Callable[..., tuple[int, str, str]]

SIZES = ((64, 64), (96, 160), (256, 128))
SPATIAL = ("--latents", "spatial", "--latent-size", 4, "--depth", 3, "--hidden-size", 16)
TRAIN = (*SPATIAL, "--fixed-std", 0.1, "--batch-size", 8, "--epochs", 2)


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_crops(tmp_path_factory.mktemp("crops") / "crops.npz", 64, 100)


@pytest.mark.parametrize("model", ["vae", "ae"])
def test_trained_on_color_crops_and_evaluated(
    cli: Cli, tmp_path: Path, crops: str, model: str
) -> None:
    out = tmp_path / "run"
    status, _, err = cli("train", "--data", crops, "--out", out, *TRAIN, "--model", model)
    assert status == 0, err
    first, last = (json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()[1:3])
    assert last["train_elbo"] > first["train_elbo"]
    assert checkpoint.load(out / "best.pt").model().latent_shape == (4, 8, 8)
    few = ("--importance-samples", 3, "--rows", 4, "--cache", tmp_path / "cache")
    status, _, err = cli("evaluate", out, *few)
    assert status == 0, err
    assert json.loads((out / "evaluation.json").read_text())["latent"]["size"] == 256


def test_evaluation_with_labels(cli: Cli, tmp_path: Path) -> None:
    """The linear probe and the Frechet distance take latents as vectors."""
    path = tmp_path / "rows.npz"
    np.savez(
        path,
        x=np.random.default_rng(0).integers(0, 256, (60, 16, 16), np.uint8),
        y=np.arange(60) % 3,
    )
    out = tmp_path / "run"
    flags = ("--latents", "spatial", "--latent-size", 2, "--epochs", 1, "--hidden-size", 8)
    assert cli("train", "--data", f"npz:{path}", "--out", out, *flags)[0] == 0
    few = ("--importance-samples", 3, "--cache", tmp_path / "cache")
    status, _, err = cli("evaluate", out, *few)
    assert status == 0, err
    found = json.loads((out / "evaluation.json").read_text())
    assert found["probe"]["classes"] == 3
    assert found["frechet"]["prior"] > 0


@pytest.fixture
def trained(cli: Cli, tmp_path: Path, crops: str) -> Path:
    status, _, err = cli("train", "--data", crops, "--out", tmp_path / "run", *TRAIN)
    assert status == 0, err
    return tmp_path / "run" / "best.pt"


def test_bundle_encodes_and_decodes_every_size_as_pytorch(
    cli: Cli, tmp_path: Path, trained: Path
) -> None:
    exported = export(cli, trained, tmp_path / "bundles", "--max-size", 260)
    manifest, eager = exported.manifest, checkpoint.load(trained).model()
    assert manifest.x.shape.json == ["h", "w", 3]
    assert manifest.z.shape.json == [4, "h/8", "w/8"]
    sides = {"multiple_of": 8, "min": 16, "max": 256, "default": 64}
    assert manifest.axes == {name: Axis(name, **sides) for name in "hw"}
    assert (manifest.posterior, manifest.prior) == ("gaussian", "standard-normal")
    assert manifest.origin == {"kind": "trained"}
    assert manifest.parity["other_sizes"] == [[16, 16], [96, 160], [256, 128]]

    encode, decode = (session(exported.files[name]) for name in (bundle.ENCODER, bundle.DECODER))
    for height, width in SIZES:
        x = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), np.uint8)
        with torch.no_grad():
            mean, log_var = eager.encode(torch.from_numpy(x))
            params = eager.decode(mean)
        got_mean, got_log_var = encode.run(["mean", "log_var"], {"x": x})
        got_x, got_params = decode.run(["x", "params"], {"z": mean.numpy()})
        np.testing.assert_allclose(got_mean, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got_log_var, log_var, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got_params, params, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.float32(got_x), to_data(eager, params).float(), atol=1)


def test_bundle_has_golden_vectors_at_three_sizes_and_loads(
    cli: Cli, tmp_path: Path, trained: Path
) -> None:
    exported = export(cli, trained, tmp_path / "bundles")
    with np.load(io.BytesIO(exported.files[bundle.GOLDEN]), allow_pickle=False) as file:
        golden = {name: file[name].shape for name in file}
    for prefix, rows, (height, width) in (
        ("", 16, (64, 64)),
        ("1.", 2, (16, 16)),
        ("2.", 2, (96, 160)),
    ):
        assert golden[f"{prefix}x"] == (rows, height, width, 3)
        assert golden[f"{prefix}z"] == (2 * rows, 4, height // 8, width // 8)
        assert golden[f"{prefix}params"] == (2 * rows, 2, height, width, 3)
    loaded = load_model(exported, SessionFactory(Provider("cpu")), Settings(max_batch_rows=8))
    assert loaded.golden_max_abs_error < 1e-4
    assert all(tile.exact for tile in exported.manifest.tiles.values())
    assert exported.manifest.tiles["decoder"].size == {"h": 512, "w": 512}


def test_autoencoder_has_no_prior(cli: Cli, tmp_path: Path, crops: str) -> None:
    flags = ("--data", crops, "--out", tmp_path / "run", *TRAIN, "--epochs", 1)
    assert cli("train", *flags, "--model", "ae")[0] == 0
    manifest = export(cli, tmp_path / "run" / "best.pt", tmp_path / "bundles").manifest
    assert (manifest.posterior, manifest.prior) == ("point", None)
    assert manifest.axes["w"].max == 1024


def test_attention_limits_the_largest_size(cli: Cli, tmp_path: Path) -> None:
    """Images of 1024 pixels would need 17 GB for the pairs of their positions."""
    path, out = tmp_path / "rows.npy", tmp_path / "run"
    np.save(path, np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8))
    flags = ("--latents", "spatial", "--latent-size", 2, "--depth", 1, "--hidden-size", 4)
    flags += ("--attention", "--epochs", 1)
    assert cli("train", "--data", f"npz:{path}", "--out", out, *flags)[0] == 0
    manifest = export(cli, out / "best.pt", tmp_path / "bundles").manifest
    assert {axis.max for axis in manifest.axes.values()} == {128}
    assert not any(tile.exact for tile in manifest.tiles.values())
    arguments = ("--checkpoint", out / "best.pt", "--bundles", tmp_path / "bundles", "--name", "m")
    status, _, err = cli("export", *arguments, "--max-size", 256)
    assert status == 2
    assert "to 128; larger images have more than 64x64 positions" in err


@pytest.mark.parametrize(
    ("size", "words"),
    [(56, "expected a number from 64, the trained size, to 8192"), (9000, "to 8192")],
)
def test_impossible_largest_sizes_are_rejected(
    cli: Cli, tmp_path: Path, trained: Path, size: int, words: str
) -> None:
    arguments = ("--checkpoint", trained, "--bundles", tmp_path / "b", "--name", "m")
    status, _, err = cli("export", *arguments, "--max-size", size)
    assert status == 2
    assert words in err
    assert not (tmp_path / "b").exists()


def test_flat_models_have_no_largest_size(cli: Cli, tmp_path: Path, digits: Path) -> None:
    arguments = ("--checkpoint", digits, "--bundles", tmp_path / "b", "--name", "m")
    status, _, err = cli("export", *arguments, "--max-size", 64)
    assert status == 2
    assert "--max-size is for models with --latents spatial" in err
