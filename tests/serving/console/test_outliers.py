"""`latentd client score` and `reconstruct` tell outliers, and show why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentd import images
from latentd.bundle import Threshold
from latentd.client import Client
from latentd.client.results import ModelVersion, Scores
from latentd.console import groups, outliers
from latentd.errors import InvalidArgument
from tests.support.table_bundle import COLUMNS, X, publish_table
from tests.support.toy_bundle import PublishToy

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def server(listener: str, tmp_path_factory: pytest.TempPathFactory, module_servers: Any) -> Any:
    root = tmp_path_factory.mktemp("bundles")
    PublishToy()(root, contributions=True, threshold=Threshold(99.0, 8.0, 1800, 49))
    PublishToy()(root, "old")
    publish_table(root, medians=(0, 0, 0, 50), threshold=Threshold(99.0, 1e9))
    publish_table(root, "old-table")
    return module_servers(root, listener=listener, default_model="toy")


@pytest.fixture
def x(run: Run) -> np.ndarray:
    """Three rows in a file: black, a black and white one, white; white has the least error."""
    rows = np.zeros((3, 4, 4), np.uint8)
    rows[1, :, 2:] = rows[2] = 255
    np.save("x.npy", rows)
    return rows


def test_model_tells_its_threshold(done: Callable[..., str]) -> None:
    assert (
        "threshold      reconstruction_error above 8 nats, exceeded by 1 % of the training rows "
        "and by 2.72 % of 1,800 validation rows\n"
    ) in done("model")
    told = json.loads(done("model", "--json"))
    assert told["threshold"] == {
        "percentile": 99.0,
        "reconstruction_error": 8.0,
        "validation_rows": 1800,
        "validation_outliers": 49,
    }
    assert told["contributions"] == [4, 4]


def test_score_tells_outliers(done: Callable[..., str], x: np.ndarray) -> None:
    said = done("score", "x.npy").splitlines()
    assert said[0].split()[-2:] == ["reconstruction_error", "is_outlier"]
    assert [line.split()[-1] for line in said[1:4]] == ["true", "true", "false"]
    assert said[4].split()[-1] == "0.667"
    assert said[5] == (
        "2 of 3 rows are outliers: their reconstruction_error exceeds 8 nats, which 99 % of the "
        "training rows do not."
    )
    told = done("score", "x.npy", "--threshold", "10")
    assert "1 of 3 rows are outliers: their reconstruction_error exceeds 10 nats.\n" in told
    assert "outlier" not in done("score", "x.npy", "--model", "old")
    assert "1 of 3 rows" in done("reconstruct", "x.npy", "--scores", "--threshold", "10")


def test_score_writes_contributions(
    done: Callable[..., str], client: Client, x: np.ndarray
) -> None:
    said = done("score", "x.npy", "--contributions", "--seed", "1", "--out", "why.npz")
    assert "in why.npz, by toy" in said
    found = client.score(x, seed=1, include_contributions=True)
    with np.load("why.npz") as kept:
        for name in ("contributions", "is_outlier", "reconstruction_error", "elbo"):
            np.testing.assert_array_equal(kept[name], getattr(found, name))
        assert (kept["threshold"], kept["model"]) == (8.0, "toy")


@pytest.fixture
def table(run: Run) -> np.ndarray:
    """Rows of a table in a file."""
    np.save("t.npy", X)
    return X


def test_columns_are_ranked_by_what_exceeds_their_median(
    done: Callable[..., str], server: Any, table: np.ndarray
) -> None:
    with Client(server.target, model="table") as of_table:
        info, found = of_table.get_model(), of_table.score(table, include_contributions=True)
    assert info.training_scores["median_contributions"] == [0, 0, 0, 50]
    assert found.contributions is not None
    excess = info.excess(found.contributions)
    np.testing.assert_allclose(excess, found.contributions - np.array([0, 0, 0, 50]), atol=1e-4)
    words = ("score", "t.npy", "--contributions", "--model")
    said = done(*words, "table").splitlines()
    start = said.index(
        "Columns that add most to the reconstruction error beyond their median among the training "
        "rows, in nats, largest errors first:"
    )
    listed = [line.split()[:3] for line in said[start + 1 : start + 1 + len(table)]]
    order = np.argsort(-found.contributions.sum(axis=1))
    assert [int(row) for row, _, _ in listed] == order.tolist()
    names = [column.name for column in COLUMNS]
    for row, name, value in listed:
        assert name == names[int(excess[int(row)].argmax())]
        assert float(value.rstrip(",")) == pytest.approx(excess[int(row)].max(), abs=0.01)
    assert "Largest contributions to the reconstruction error, in" in done(*words, "old-table")
    done(*words, "table", "--out", "why.npz")
    with np.load("why.npz") as kept:
        np.testing.assert_allclose(kept["excess"], excess, atol=1e-4)
    with Client(server.target, model="old-table") as of_table:
        old = of_table.get_model()
    with pytest.raises(InvalidArgument, match=r"no medians to compare them with.*Export it again"):
        old.excess(found.contributions)


def test_only_the_lines_of_outliers_are_printed(done: Callable[..., str], x: np.ndarray) -> None:
    said = done("score", "x.npy", "--outliers-only", "--threshold", "10").splitlines()
    assert [line.split()[0] for line in said[:3]] == ["row", "0", "mean"]
    assert said[3].startswith("1 of 3 rows are outliers")


def test_picture_has_heat_maps_below_the_rows(
    done: Callable[..., str], client: Client, x: np.ndarray
) -> None:
    terms = client.score(x, include_contributions=True).contributions
    assert terms is not None
    low, high = scale = images.heat_scale([terms])
    (heat,) = images.heat_maps([terms], scale)
    said = done("score", "x.npy", "--contributions", "--out", "why.png")
    assert f"from black, {low:.3g} nats a pixel, to yellow, {high:.3g} nats." in said
    rgb = images.to_rgb(x)
    assert Path("why.png").read_bytes() == images.make_grid(np.concatenate([rgb, heat]), 3)
    done("reconstruct", "x.npy", "--contributions", "--out", "why.png")
    again = images.make_grid(np.concatenate([rgb, rgb, heat]), 3)  # the toy gives x back
    assert Path("why.png").read_bytes() == again
    with Image.open("why.png") as image:
        assert image.mode == "RGB"


def test_heat_maps_share_a_scale_and_sum_channels() -> None:
    gray = np.array([[[0.0, 1.0]]], np.float32)
    color = np.array([[[[0.5, 0.5, 1.0]]]], np.float32)
    scale = images.heat_scale([gray, color])
    maps = images.heat_maps([gray, color], scale)
    assert scale == (0.0, 2.0)
    assert [part.shape for part in maps] == [(1, 1, 2, 3), (1, 1, 1, 3)]
    assert maps[0][0, 0].tolist() == [[0, 0, 0], [255, 0, 0]]
    assert maps[1][0, 0].tolist() == [[255, 255, 0]]
    (flat,) = images.heat_maps([np.zeros((1, 2, 2), np.float32)], (0.0, 0.0))
    assert not flat.any()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_rows_of_other_sizes_are_told_apart(order: tuple[int, int]) -> None:
    by = ModelVersion("m", 1, "")
    ones, known = np.ones(2, np.float32), np.array([True, False])
    scores = [
        Scores(ones, ones, ones, 0, 1, None, by, 3.0, known, None, ones),
        Scores(ones[:1], ones[:1], ones[:1], 0, 1, None, by),
    ]
    x = [np.zeros((2, 4, 4), np.uint8), np.zeros((1, 8, 8), np.uint8)]
    found = groups.by_size([x[i] for i in order])
    parts = [scores[i] for i in order]
    told = outliers.columns(found, parts)["is_outlier"]
    errors = outliers.errors(found, parts)["reconstruction_error"]
    outlier, inlier, unknown = (0, 1, 2) if order == (0, 1) else (1, 2, 0)
    assert (told[outlier], told[inlier], told[unknown]) == (True, False, False)
    assert np.isnan(errors).tolist() == [row == unknown for row in range(3)]


REFUSED = [
    (("score", "x.npy", "--out", "why.png"), "--out: a picture shows contributions"),
    (("score", "x.npy", "--contributions", "--model", "old"), "was exported without contributi"),
    (("reconstruct", "x.npy", "--threshold", "1"), "threshold: scores are compared with it, and"),
    (("score", "x.npy", "--outliers-only", "--model", "old"), "command has a threshold. Add --thr"),
    (("reconstruct", "x.npy", "--outliers-only"), "--outliers-only: needs scores. Add --scores"),
    (("score", "x.npy", "--out", "why.csv"), "--out: unsupported output why.csv"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_what_cannot_be_told_is_refused(
    run: Run, x: np.ndarray, words: tuple[str, ...], said: str
) -> None:
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert said in err
