"""A job over texts: the scores of each line, as PyTorch computes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from latentd.__main__ import main
from latentd.client import Client
from latentd.errors import EXIT_CONFIG
from latentd.training.model import decoded, gaussian_kl
from tests.support.server import server_starter
from tests.support.text_bundle import TEXTS, X, publish_text, text_model


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_text(tmp_path_factory.mktemp("models"))


def test_each_line_is_scored_or_quarantined(text_folder: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join([*TEXTS, "much too long"]), encoding="utf-8")
    out = tmp_path / "out"
    flags = [
        "--processes",
        "1",
        "--reconstruction",
        "raw",
        "--provider",
        "cpu",
        "--max-quarantined",
        "1",
    ]
    job = ["batch", "--input", str(lines), "--bundle", str(text_folder), "--output", str(out)]
    assert main([*job, *flags]) == 0
    table = pq.read_table(out / "shards").to_pydict()
    net, x = text_model(), torch.from_numpy(X)
    with torch.no_grad():
        mean, log_var = net.encode(x)
        error, kl = net.distortion(mean, x), gaussian_kl(mean, log_var)
        again = decoded(net, mean).numpy()
    assert table["row"] == list(range(len(TEXTS)))
    np.testing.assert_allclose(table["reconstruction_error"], error, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(table["elbo"], -error - kl, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.array(table["mean"]), mean, rtol=1e-4, atol=1e-5)
    assert table["reconstruction"] == [row.tobytes() for row in again]
    with server_starter() as start:
        target = start(text_folder.parents[1]).target
        remote = ["--server", target, *flags[:4], "--max-quarantined", "1"]
        job = ["batch", "--input", str(lines), "--output", str(tmp_path / "remote"), *remote]
        assert main(job) == 0
    by_server = pq.read_table(tmp_path / "remote" / "shards").to_pydict()
    assert by_server["reconstruction"] == table["reconstruction"]
    np.testing.assert_allclose(by_server["elbo"], table["elbo"], rtol=1e-5)
    assert "has 13 bytes in UTF-8; the limit is 7" in (out / "quarantine.jsonl").read_text()


def job(lines: Path, model: list[str], out: Path, *flags: str) -> dict[str, list[Any]]:
    """Run a job of one process; returns its columns."""
    words = ["batch", "--input", str(lines), *model, "--output", str(out), "--processes", "1"]
    assert main([*words, "--provider", "cpu", *flags]) == 0
    return pq.read_table(out / "shards").to_pydict()


def test_reconstructions_are_drawn_strings(text_folder: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join([*TEXTS[:2], "much too long", *TEXTS[2:]]), encoding="utf-8")
    flags = ("--reconstruction", "text", "--draw-x", "--seed", "3", "--max-quarantined", "1")
    with server_starter() as start:
        target = start(text_folder.parents[1]).target
        by_server = job(lines, ["--server", target], tmp_path / "remote", *flags)
        with Client(target) as client:
            x = np.insert(X, 2, X[0], axis=0)  # a bad row keeps its place, and so its numbers
            expected = client.reconstruct(x, draw_x=True, seed=3).texts
    local = job(lines, ["--bundle", str(text_folder)], tmp_path / "local", *flags)
    assert local["row"] == [0, 1, 3, 4, 5, 6]
    assert local["reconstruction"] == [expected[row] for row in local["row"]]
    assert by_server["reconstruction"] == local["reconstruction"]
    assert json.loads((tmp_path / "local" / "plan.json").read_bytes())["wanted"]["draw_x"]


def test_the_contact_sheet_shows_texts_as_text(text_folder: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("<b>&\x1b\né\n", encoding="utf-8")
    job(lines, ["--bundle", str(text_folder)], tmp_path / "out")
    sheet = (tmp_path / "out" / "sheet.html").read_text(encoding="utf-8")
    assert '<p class="row">&lt;b&gt;&amp;\N{REPLACEMENT CHARACTER}</p><p class="recon' in sheet
    assert '<p class="row">é</p>' in sheet
    assert "Black: the text. Red: its reconstruction." in sheet
    assert "<svg" not in sheet
    # A job that draws no bytes has the plan, and so the digest, that it had before --draw-x.
    assert "draw_x" not in (tmp_path / "out" / "plan.json").read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--draw-x"], "--draw-x draws the reconstruction. Add --reconstruction raw."),
        (["--reconstruction", "png"], "cannot be stored as PNG"),
        (["--reconstruction", "text", "--format", "npy"], ".npy cannot hold texts"),
        (["--encode", "mean", "--draw-x"], "use it without --draw-x"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(
    text_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    said: str,
) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("a\n")
    model = ["--bundle", str(text_folder), "--output", str(tmp_path / "out")]
    assert main(["batch", "--input", str(lines), *model, *flags]) == EXIT_CONFIG
    assert said in capsys.readouterr().err
