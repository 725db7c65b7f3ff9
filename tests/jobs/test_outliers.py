"""Jobs write which rows are outliers, and what each element contributes to their errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from latentd.__main__ import main
from latentd.bundle import Threshold
from tests.support.server import StartServer
from tests.support.spatial_bundle import blocks, publish_spatial
from tests.support.table_bundle import COLUMNS, X, publish_table
from tests.support.toy_bundle import PublishToy

FLAGS = ("--processes", "1", "--provider", "cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    PublishToy()(root, contributions=True, threshold=Threshold(99.0, 8.0))
    PublishToy()(root, "old")
    publish_spatial(root, likelihood=True, threshold=Threshold(99.0, 2000.0))
    return root


@pytest.fixture
def x(tmp_path: Path) -> np.ndarray:
    """Rows from black to white in a file; the toy's error falls towards white."""
    rows = np.random.default_rng(0).integers(0, 40, (30, 4, 4), np.uint8)
    rows += np.linspace(0, 215, 30).astype(np.uint8)[:, None, None]
    np.save(tmp_path / "x.npy", rows)
    return rows


def run(source: Path, out: Path, *flags: object) -> dict[str, np.ndarray]:
    """The columns of a job's rows."""
    words = ["batch", "--input", source, "--output", out, *FLAGS, *flags]
    assert main(list(map(str, words))) == 0
    table = pq.read_table(out / "shards")
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def test_job_tells_the_outliers_of_the_bundle(
    models: Path, x: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(tmp_path / "x.npy", tmp_path / "out", "--bundle", models / "toy")
    errors = found["reconstruction_error"]
    assert found["is_outlier"].dtype == np.bool_
    assert found["is_outlier"].tolist() == (errors > 8).tolist()
    count = int((errors > 8).sum())
    assert 0 < count < len(x)
    said = f"{count} rows are outliers: their reconstruction_error exceeds 8 nats."
    assert said in capsys.readouterr().out
    assert "contributions" not in found
    plain = run(tmp_path / "x.npy", tmp_path / "old", "--bundle", models / "old")
    assert "is_outlier" not in plain


def test_flag_sets_the_threshold(models: Path, x: np.ndarray, tmp_path: Path) -> None:
    for model in ("toy", "old"):
        bundle = ("--bundle", models / model, "--threshold", "7.5")
        found = run(tmp_path / "x.npy", tmp_path / model, *bundle)
        assert found["is_outlier"].tolist() == (found["reconstruction_error"] > 7.5).tolist()


def test_contributions_are_written_and_shown(
    models: Path, x: np.ndarray, tmp_path: Path, start_server: StartServer
) -> None:
    bundle = ("--bundle", models / "toy", "--contributions")
    here = run(tmp_path / "x.npy", tmp_path / "here", *bundle)
    terms = np.stack(here["contributions"])
    assert (terms.dtype, terms.shape) == (np.float32, (len(x), 16))
    sums = terms.sum(axis=1, dtype=np.float64)
    np.testing.assert_allclose(sums, here["reconstruction_error"], rtol=1e-6)
    unit = x.reshape(len(x), 16) / 255
    np.testing.assert_allclose(terms, np.logaddexp(0, unit) - unit * unit, rtol=1e-4)
    sheet = (tmp_path / "here" / "sheet.html").read_text()
    assert "what each pixel adds to the error" in sheet
    assert sheet.count("<img") == 3 * sheet.count("<figure")
    server = ("--server", start_server(models).target, "--model", "toy", "--contributions")
    there = run(tmp_path / "x.npy", tmp_path / "there", *server)
    assert list(there) == list(here)
    np.testing.assert_allclose(np.stack(there["contributions"]), terms, rtol=1e-5)
    assert there["is_outlier"].tolist() == here["is_outlier"].tolist()


def test_npy_holds_both(models: Path, x: np.ndarray, tmp_path: Path) -> None:
    words = ("--bundle", models / "toy", "--contributions", "--format", "npy")
    command = ["batch", "--input", tmp_path / "x.npy", "--output", tmp_path / "out", *FLAGS, *words]
    assert main(list(map(str, command))) == 0
    (shard,) = (tmp_path / "out" / "shards").glob("*.npy")
    rows = np.load(shard)
    assert rows["contributions"].shape == x.shape
    assert rows["is_outlier"].tolist() == (rows["reconstruction_error"] > 8).tolist()


def test_threshold_of_the_bundle_is_for_rows_of_the_default_size(
    models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "arrays"
    folder.mkdir()
    np.save(folder / "a.npy", blocks(3, 32, 32, seed=1))
    np.save(folder / "b.npy", blocks(2, 16, 48, seed=2))
    bundle = ("--bundle", models / "spatial", "--contributions")
    found = run(folder, tmp_path / "out", *bundle)
    known = [value is None for value in found["is_outlier"].tolist()]
    assert known == [False, False, False, True, True]
    shapes = np.stack(found["contributions_shape"]).tolist()
    assert shapes == [[32, 32, 3]] * 3 + [[16, 48, 3]] * 2
    for terms, shape, error in zip(
        found["contributions"], shapes, found["reconstruction_error"], strict=True
    ):
        assert len(terms) == np.prod(shape)
        np.testing.assert_allclose(terms.sum(dtype=np.float64), error, rtol=1e-5)


def test_columns_of_a_table_contribute_by_name(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    model = publish_table(tmp_path / "models")
    found = run(tmp_path / "x.npy", tmp_path / "out", "--bundle", model, "--contributions")
    terms = np.stack([found[f"contributions.{column.name}"] for column in COLUMNS], axis=1)
    np.testing.assert_allclose(terms.sum(axis=1), found["reconstruction_error"], rtol=1e-4)
    assert "the columns that add most to the error, with their nats." in sheet_in(tmp_path / "out")
    assert not [name for name in found if name.startswith("excess")]


def sheet_in(out: Path) -> str:
    return (out / "sheet.html").read_text()


def test_columns_are_ranked_by_what_exceeds_their_median(
    tmp_path: Path, start_server: StartServer
) -> None:
    """Without medians `pressure` adds most to each row, because its unit is large."""
    np.save(tmp_path / "x.npy", X)
    threshold = Threshold(99.0, -1e9)  # each row is an outlier
    root = tmp_path / "models"
    model = publish_table(root, medians=(1e5, -7.5, 0, 2), threshold=threshold)
    here = run(tmp_path / "x.npy", tmp_path / "here", "--bundle", model, "--contributions")
    for column, median in zip(COLUMNS, (1e5, -7.5, 0, 2), strict=True):
        excess, terms = here[f"excess.{column.name}"], here[f"contributions.{column.name}"]
        assert excess.dtype == np.float32
        np.testing.assert_allclose(excess, terms - median, rtol=1e-5, atol=1e-3)
    sheet = sheet_in(tmp_path / "here")
    assert "to the error, with their nats: beyond their median among the training rows." in sheet
    assert not re.search("<br>pressure", sheet)
    color = re.escape(f"{here['excess.color'][0]:+,.1f}")
    assert re.search(rf"<br>color blue, reconstruction \S+: {color}<br>", sheet)
    assert "4 of 4 rows are outliers: their reconstruction error exceeds -1e+09 nats. 4 of" in sheet
    assert sheet.count('<figure class="outlier">') == sheet.count(", outlier</b>: ") == 4
    server = ("--server", start_server(root).target, "--contributions")
    there = run(tmp_path / "x.npy", tmp_path / "there", *server)
    assert list(there) == list(here)
    np.testing.assert_allclose(there["excess.leak"], here["excess.leak"], rtol=1e-4)
    words = ("--bundle", model, "--contributions", "--format", "npy", "--output", tmp_path / "npy")
    assert main(list(map(str, ["batch", "--input", tmp_path / "x.npy", *FLAGS, *words]))) == 0
    (shard,) = (tmp_path / "npy" / "shards").glob("*.npy")
    np.testing.assert_array_equal(np.load(shard)["excess"][:, 2], here["excess.leak"])


REFUSED = [
    ("old", ("--contributions",), "--contributions: this model was exported without contributio"),
    ("toy", ("--contributions", "--no-scores"), "--contributions: leave --no-scores out"),
    ("toy", ("--threshold", "nan"), "--threshold nan: expected a finite number of nats"),
    ("toy", ("--threshold", "1", "--encode", "mean"), "without --threshold"),
]


@pytest.mark.parametrize(("model", "flags", "said"), REFUSED)
def test_what_cannot_be_written_is_refused(
    models: Path,
    x: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: str,
    flags: Any,
    said: str,
) -> None:
    words = ("--bundle", models / model, *flags)
    command = ["batch", "--input", tmp_path / "x.npy", "--output", tmp_path / "out", *FLAGS, *words]
    assert main(list(map(str, command))) == 78
    assert said in capsys.readouterr().err
