"""`latentd client map` draws the training rows of a bundle, or writes what is known of them."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentd.client.results import LatentMap, ModelVersion
from latentd.console import scatter
from tests.support.latent_maps import ROWS, toy_map


def test_map_is_drawn_and_written(
    done: Callable[..., str],
    publish_toy: Any,
    start_server: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish_toy(Path("models"), map_npz=toy_map().to_npz())
    monkeypatch.setenv("LATENTD_SERVER", start_server(Path("models")).target)
    said = done("map", "--out", "map.png")
    assert "7 training rows, 8 of 16 units active; the components explain 100% and 0%" in said
    with Image.open("map.png") as picture:
        assert picture.size == (1200, 960)
    done("map", "--out", "map.npz")
    with np.load("map.npz") as file:
        np.testing.assert_array_equal(file["mean"], toy_map().mean)
        assert file["classes"].tolist() == ["dark", "é"]
        assert file["model"] == "toy"
        assert Image.open(io.BytesIO(file["sprites"].tobytes())).format == "WEBP"


def test_models_without_a_map_and_other_files_are_refused(run: Callable[..., Any]) -> None:
    status, _, err = run("map", "--out", "map.png")
    assert (status, "made without --map-rows" in err) == (2, True)
    status, _, err = run("map", "--out", "map.jpg")
    assert (status, "Use a .png or .npz path" in err) == (2, True)


def drawn(**changed: Any) -> np.ndarray:
    known = toy_map()
    names = {f.name for f in dataclasses.fields(LatentMap)} & set(vars(known))
    values = {name: getattr(known, name) for name in names}
    values |= {
        "classes": known.classes.tolist(),
        "texts": [],
        "served_by": ModelVersion("m", 1, ""),
    }
    with Image.open(io.BytesIO(scatter.draw(LatentMap(**values | changed)))) as picture:
        return np.asarray(picture)


def colors(picture: np.ndarray) -> int:
    """How many colors the centers of the dots have that lie on a line from margin to margin."""
    across = np.linspace(24, 960 - 24, ROWS).round().astype(int)
    return len(np.unique(picture[480, across], axis=0))


def test_rows_are_colored_by_label_else_by_error_else_alike() -> None:
    line = np.stack((np.arange(ROWS), np.zeros(ROWS)), axis=1).astype(np.float32)
    assert colors(drawn(position=line)) == 2
    unlabelled = {"label": None, "classes": []}
    assert colors(drawn(position=line, **unlabelled)) == ROWS
    alike = drawn(position=line, **unlabelled, reconstruction_error=None)
    assert (colors(alike), alike.shape[1]) == (1, 960)  # there is no legend


def test_up_is_more_and_the_axes_share_a_scale() -> None:
    corner = np.array([[0, 0], [1, 0], [0, 4]], np.float32)
    picture = drawn(position=corner, label=None, classes=[], reconstruction_error=None)
    dark = np.argwhere(picture[..., 0] < 100)
    top, left = dark.min(axis=0)
    bottom, right = dark.max(axis=0)
    assert (bottom - top) / (right - left) == pytest.approx(4, rel=0.1)
    assert dark[dark[:, 0] == top][0, 1] == pytest.approx(left + 4, abs=4)  # the third row


def test_many_classes_have_as_many_colors() -> None:
    assert len(set(scatter._palette(100))) == 100
    names = [f"class {number}" for number in range(100)]
    assert drawn(classes=names).shape == (960, 1200, 3)
