"""`export --map-rows` of real trainings, on data of every kind, up to a client of a real server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from latentd import bundle, latent_map
from latentd.client import Client, Texts
from latentd.client.results import LatentMap
from latentd.training import checkpoint, data
from latentd.training.latent_map import principal_components
from latentd.training.model import latent_kl
from tests.support.crops import write_crops
from tests.support.exports import export, source, train
from tests.training.conftest import Cli

ROWS = 40


def served(exported: bundle.Bundle, start_server: Any) -> LatentMap:
    """The map that a server of the bundle returns, and what every map must be."""
    with Client(start_server(exported.path.parent.parent).target) as client:
        found, info = client.get_map(), client.get_model()
        z = info.default.z
        assert "map" not in info.unavailable
        assert found.center.shape == found.active.shape == z
        assert found.components.shape == (2, *z)
        flat = found.components.reshape(2, -1)
        np.testing.assert_allclose(flat @ flat.T, np.eye(2), atol=1e-5)
        assert (flat[[0, 1], np.abs(flat).argmax(axis=1)] > 0).all()
        assert client.decode(found.at([[0, 0], [1, -1]])).x.shape[0] == 2
    return found


def expected(run: Path, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The rows of the map, evenly spaced, and their mean and log_var by PyTorch."""
    saved = checkpoint.load(run)
    x = data.load(saved.config, known=saved.spec.columns).train.x
    picked = x[torch.arange(rows) * len(x) // rows]
    with torch.no_grad():
        return picked, *saved.model().encode(picked)


def test_digits_have_labels_scores_and_pictures(
    cli: Cli, digits: Path, tmp_path: Path, start_server: Any
) -> None:
    exported = export(cli, digits, tmp_path, "--map-rows", ROWS)
    found = served(exported, start_server)
    x, mean, log_var = expected(digits, ROWS)
    np.testing.assert_allclose(found.mean, mean, atol=1e-5)
    np.testing.assert_allclose(found.unit_kl, latent_kl(mean, log_var).mean(0), atol=1e-5)
    np.testing.assert_allclose(found.kl, latent_kl(mean, log_var).sum(1), atol=1e-4)
    np.testing.assert_array_equal(found.active, mean.var(0) > 0.01)
    saved = checkpoint.load(digits)
    train_rows = data.load(saved.config).train
    labels = train_rows.y[torch.arange(ROWS) * len(train_rows) // ROWS]
    assert [found.classes[label] for label in found.label] == [str(y) for y in labels.tolist()]
    assert np.abs(found.thumbnails[..., 0].astype(int) - x.numpy()).mean() < 12
    with Client(start_server(tmp_path).target) as client:
        scores = client.reconstruct(x.numpy(), include_scores=True)
        np.testing.assert_allclose(
            found.reconstruction_error, scores.reconstruction_error, rtol=1e-4
        )
    again = export(cli, digits, tmp_path, "--map-rows", ROWS)
    assert again.files[bundle.MAP] == exported.files[bundle.MAP]


def test_a_bundle_keeps_no_training_rows_unless_asked(
    cli: Cli, digits: Path, tmp_path: Path
) -> None:
    assert bundle.MAP not in export(cli, digits, tmp_path).files
    for rows, said in (
        (1, "expected 0, or a number from 2 to 20000"),
        (20_001, "--map-rows 20001"),
    ):
        status, _, err = cli(
            *("export", "--checkpoint", digits, "--bundles", tmp_path / "b", "--name", "m"),
            *("--map-rows", rows),
        )
        assert (status, said in err) == (2, True), err
    assert not (tmp_path / "b").exists()
    more_than_there_are = export(cli, digits, tmp_path, "--map-rows", 20_000)
    rows = json.loads((more_than_there_are.path / bundle.MANIFEST).read_text())["training_scores"]
    found = latent_map.load(more_than_there_are.path, more_than_there_are.manifest)
    assert len(found) == rows["rows"]  # all of them


def test_folders_name_the_labels_and_pictures_are_small(
    cli: Cli, tmp_path: Path, start_server: Any
) -> None:
    for row in range(40):
        path = tmp_path / "pets" / ("dogs" if row % 4 else "cats") / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        color = (250, row, 3 * row) if row % 4 else (20, 2 * row, 250)
        Image.new("RGB", (96, 48), color).save(path)
    path = train(cli, tmp_path / "run", "--data", f"images:{tmp_path / 'pets'}")
    found = served(export(cli, path, tmp_path / "b", "--map-rows", 30), start_server)
    assert found.classes == ["cats", "dogs"]
    assert found.thumbnails.shape == (30, 16, 32, 3)
    red = found.thumbnails[:, 8, 16, 0] > 128
    np.testing.assert_array_equal(red, found.label == 1)


def test_texts_and_their_scores(cli: Cli, tmp_path: Path, start_server: Any) -> None:
    names = [f"{first}{last}" for first in "abcdefghij" for last in ("anna", "berta", "é", "x")]
    (tmp_path / "names.txt").write_text("\n".join(names))
    path = train(cli, tmp_path / "run", "--data", f"text:{tmp_path / 'names.txt'}")
    exported = export(cli, path, tmp_path / "b", "--map-rows", 20)
    found = served(exported, start_server)
    assert len(set(found.texts)) == 20
    assert set(found.texts) <= set(names)
    assert (found.x, found.sprites, found.label) == (None, b"", None)
    with Client(start_server(tmp_path / "b").target) as client:
        scores = client.reconstruct(Texts(found.texts), include_scores=True)
        np.testing.assert_allclose(found.kl, scores.kl, rtol=1e-3)
        np.testing.assert_allclose(
            found.reconstruction_error, scores.reconstruction_error, rtol=1e-3
        )
        np.testing.assert_allclose(found.mean, client.encode(Texts(found.texts)).mean, atol=1e-5)


def test_tables_keep_their_rows_and_label_column(
    cli: Cli, tmp_path: Path, start_server: Any
) -> None:
    rng = np.random.default_rng(0)
    lines = [f"{rng.normal(1e5, 300):.1f},{'on' if i % 3 else 'off'},k{i % 2}" for i in range(90)]
    (tmp_path / "rows.csv").write_text("\n".join(["pascal,state,kind", *lines]))
    flags = ("--data", f"table:{tmp_path / 'rows.csv'}", "--label-column", "kind")
    path = train(cli, tmp_path / "run", *flags)
    found = served(export(cli, path, tmp_path / "b", "--map-rows", 30), start_server)
    x, mean, _ = expected(path, 30)
    np.testing.assert_array_equal(found.x, x)
    np.testing.assert_allclose(found.mean, mean, atol=1e-5)
    assert found.classes == ["k0", "k1"]
    assert found.reconstruction_error is not None


def test_an_autoencoder_has_no_kl(cli: Cli, tmp_path: Path, start_server: Any) -> None:
    path = train(
        cli, tmp_path / "run", "--model", "ae", "--data", source(tmp_path, (6,), "float32")
    )
    found = served(export(cli, path, tmp_path / "b", "--map-rows", 20), start_server)
    assert (found.unit_kl, found.kl, found.reconstruction_error) == (None, None, None)
    assert found.x.shape == (20, 6)


@pytest.mark.parametrize(("depth", "kept"), [(3, (4, 8, 8)), (1, (4,))])
def test_spatial_latents_are_kept_whole_or_by_channel(
    cli: Cli, tmp_path: Path, start_server: Any, depth: int, kept: tuple[int, ...]
) -> None:
    flags = ("--latents", "spatial", "--latent-size", 4, "--depth", depth, "--epochs", 1)
    crops = write_crops(tmp_path / "crops.npz", 64, 40)
    path = train(cli, tmp_path / "run", "--data", crops, *flags, "--hidden-size", 8)
    found = served(export(cli, path, tmp_path / "b", "--map-rows", 16), start_server)
    _, mean, log_var = expected(path, 16)
    assert found.mean.shape == (16, *kept)
    pooled = mean if len(kept) == 3 else mean.mean((2, 3))
    np.testing.assert_allclose(found.mean, pooled, atol=1e-4)
    np.testing.assert_allclose(found.unit_kl, latent_kl(mean, log_var).mean(0), atol=1e-4)
    centered = (mean - mean.mean(0)).flatten(1).numpy()
    along = centered @ found.components.reshape(2, -1).T
    np.testing.assert_allclose(found.position, along, atol=1e-4)
    shares = np.linalg.svd(centered, compute_uv=False) ** 2
    np.testing.assert_allclose(found.explained_variance, (shares / shares.sum())[:2], rtol=1e-3)
    assert found.thumbnails.shape == (16, 32, 32, 3)


@pytest.mark.parametrize("shape", [(50, 4), (5, 300)])
def test_principal_components_are_those_of_the_singular_values(shape: tuple[int, int]) -> None:
    points = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    points *= np.linspace(3, 1, shape[1], dtype=np.float32)
    found = principal_components(points)
    centered = points - points.mean(axis=0)
    _, singular, directions = np.linalg.svd(centered.astype(np.float64), full_matrices=False)
    for component, direction in zip(found.components, directions, strict=False):
        assert abs(component @ direction) == pytest.approx(1, abs=1e-5)
        assert component[np.abs(component).argmax()] > 0
    np.testing.assert_allclose(
        found.explained_variance, (singular**2 / (singular**2).sum())[:2], rtol=1e-5
    )
    flipped = principal_components(-points)
    np.testing.assert_allclose(flipped.components, found.components, atol=1e-5)
    np.testing.assert_allclose(flipped.position, -found.position, atol=1e-3)


def test_points_on_a_line_have_one_component() -> None:
    for points in (np.arange(5.0)[:, None], np.outer(np.arange(5.0), [3, 4]), np.ones((5, 3))):
        found = principal_components(points.astype(np.float32))
        assert not found.components[1].any()
        assert np.isfinite(found.components).all()
        lies = found.center + found.position @ found.components
        np.testing.assert_allclose(lies, points, atol=1e-5)
