"""Whole trainings with each tracker: real TensorBoard, MLflow and wandb, and libraries that fail.

`pip install 'latentd[mlflow,wandb]'` brings the last two, which are too large for all tests.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentd.training import run_log
from latentd.training.trackers import background, known_run
from tests.support.events import tensorboard_values, wandb_records
from tests.support.processes import StartProcess, wait_until
from tests.support.runs import TINY, TRAIN, lines

Cli = Callable[..., tuple[int, str, str]]
PICTURES = ["curves.png", "interpolation.png", "reconstructions.png", "samples.png"]

needs_mlflow, needs_wandb = (
    pytest.mark.skipif(
        importlib.util.find_spec(package) is None,
        reason=f"{package} is not installed: pip install 'latentd[{package}]'",
    )
    for package in ("mlflow", "wandb")
)


@pytest.fixture(autouse=True)
def _local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of this machine's user decides where the trackers write."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "WANDB_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def logged(out: Path) -> set[tuple[str, int]]:
    """Every figure of log.jsonl and the epoch it is of."""
    _, *epochs, test = lines(out)
    points = {(name, line["epoch"]) for line in epochs for name in run_log.metrics(line)}
    return points | {(name, test["best_epoch"]) for name in run_log.metrics(test)}


def notices(err: str) -> list[str]:
    """What is said of trackers. On a busy machine, more is said of other things."""
    return [line for line in err.splitlines() if line.startswith("--tracker")]


def train_in_parts(cli: Cli, out: Path, tracker: str) -> None:
    """Two epochs, and two more."""
    for flags in ((*TINY, "--epochs", 2, "--tracker", tracker), ("--resume", "--epochs", 4)):
        status, _, err = cli("train", "--out", out, *flags)
        assert (status, notices(err)) == (0, [])


def test_tensorboard_has_figures_pictures_and_header_once(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_in_parts(cli, out, "tensorboard")
    values = list(tensorboard_values(out))
    assert len(values) == len({(tag, step) for tag, step, _ in values})
    plotted = {(tag, step): value for tag, step, value in values}
    assert plotted["elbo/test", 4].simple_value == pytest.approx(lines(out)[-1]["test_elbo"])
    for picture in PICTURES:
        assert plotted[Path(picture).stem, 4].image.encoded_image_string[1:4] == b"PNG"
    (header,) = (value for tag, _, value in values if tag.startswith("header"))
    assert b'"latent_size": 3' in header.tensor.string_val[0]


def test_run_without_tracker_gets_one_later(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert cli("train", "--out", out, *TINY, "--tracker", "none")[0] == 0
    assert not (out / "tensorboard").exists()
    assert cli("train", "--out", out, "--resume", "--tracker", "tensorboard")[0] == 0
    steps = {step for tag, step, _ in tensorboard_values(out) if tag == "elbo/train"}
    assert steps == {1, 2, 3, 4}


COUNT = "select count(*) from metrics"


def rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """What MLflow's database says."""
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return database.execute(query).fetchall()


@needs_mlflow
def test_mlflow_has_each_point_once(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "my runs #1" / "run"
    train_in_parts(cli, out, "mlflow")
    ((run, name, status),) = rows(out.parent, "select run_uuid, name, status from runs")
    assert (run, name, status) == (known_run.load(out, "mlflow"), "run", "FINISHED")
    points = rows(out.parent, "select key, step, value from metrics")
    first_end = {(name, 2) for name in run_log.metrics(lines(out)[-1])}
    assert sorted(point[:2] for point in points) == sorted(logged(out) | first_end)
    values = {point[:2]: point[2] for point in points}
    assert values["train_elbo", 3] == lines(out)[3]["train_elbo"]
    assert dict(rows(out.parent, "select key, value from params"))["latent_size"] == "3"
    assert dict(rows(out.parent, "select key, value from tags"))["split.train"] == "1455"
    artifacts = out.parent / "mlflow-artifacts" / run / "artifacts"
    assert sorted(path.name for path in (artifacts / "pictures").iterdir()) == PICTURES
    assert json.loads((artifacts / "header.json").read_text()) == lines(out)[0]


@needs_mlflow
def test_stopped_run_is_stopped_in_mlflow_and_continued(
    cli: Cli, tmp_path: Path, start_process: StartProcess
) -> None:
    out = tmp_path / "run"
    slow = ("--epochs", 100_000, "--batch-size", 4)  # the tracker keeps up with the epochs
    command = [*TRAIN, "--out", out, *TINY, *slow, "--tracker", "mlflow"]
    process = start_process(list(map(str, command)), stdout=subprocess.DEVNULL)
    wait_until(lambda: known_run.load(out, "mlflow") and rows(tmp_path, COUNT)[0][0], process)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert rows(tmp_path, "select status from runs") == [("KILLED",)]
    done = len(lines(out)) - 1
    assert cli("train", "--out", out, "--resume", "--epochs", done + 1)[0] == 0
    assert rows(tmp_path, "select status from runs") == [("FINISHED",)]
    steps = rows(tmp_path, "select step from metrics where key = 'train_elbo' order by step")
    assert steps == [(step,) for step in range(1, done + 2)]


@needs_wandb
def test_wandb_has_each_point_once_and_stays_offline(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_in_parts(cli, out, "wandb")
    found: dict[str, list[Any]] = {}
    for kind, content in wandb_records(out):
        found.setdefault(kind, []).append(content)
    assert found["run"][0].run_id == known_run.load(out, "wandb")
    history = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in row.item}
        for row in found["history"]
    ]
    assert [row["_step"] for row in history] == [1, 2, 3, 4]
    for row, line in zip(history, lines(out)[1:-1], strict=True):
        assert row.items() >= run_log.metrics(line).items()
    settings = {u.key: json.loads(u.value_json) for c in found["config"] for u in c.update}
    assert settings["latent_size"] == 3
    assert settings["split"]["train"] == 1455
    summary = {
        u.key or u.nested_key[0]: json.loads(u.value_json)
        for content in found["summary"]
        for u in content.update
    }
    assert summary.items() >= run_log.metrics(lines(out)[-1]).items()
    images = {row.path.split("/")[-1].split("_")[0] for f in found["files"] for row in f.files}
    assert images >= {Path(name).stem for name in PICTURES}
    assert found["exit"][0].exit_code == 0


@pytest.fixture
def fake_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a module in the place of mlflow."""

    def install(code: str) -> None:
        (tmp_path / "fake").mkdir()
        (tmp_path / "fake" / "mlflow.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path / "fake")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"), prepend=os.pathsep)

    return install


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise RuntimeError('the disk is full')", "the disk is full"),
        ("import os; os.abort()", "its process ended with status -6"),
    ],
)
def test_tracker_that_fails_is_said_once_and_training_goes_on(
    cli: Cli,
    tmp_path: Path,
    fake_library: Callable[[str], None],
    code: str,
    words: str,
) -> None:
    fake_library(code)
    status, _, err = cli("train", "--out", tmp_path / "run", *TINY, "--tracker", "mlflow")
    assert status == 0
    (notice,) = notices(err)
    assert words in notice
    assert "--resume" in notice
    assert len(lines(tmp_path / "run")) == 6
    if "abort" not in code:
        assert "RuntimeError" in (tmp_path / "run" / background.LOG).read_text()


def test_tracker_that_hangs_is_left(
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_library: Callable[[str], None],
) -> None:
    fake_library("import signal; signal.pause()")
    monkeypatch.setattr(background, "FINISH_SECONDS", 0.1)
    status, _, err = cli("train", "--out", tmp_path / "run", *TINY, "--tracker", "mlflow")
    assert status == 0
    (notice,) = notices(err)
    assert "did not finish within" in notice
    assert len(lines(tmp_path / "run")) == 6


def test_tracker_ends_with_a_training_that_is_killed(tmp_path: Path) -> None:
    """Its standard input ends: it closes the run as stopped, and is gone."""
    out = tmp_path / "run"
    out.mkdir()
    (out / run_log.FILE).write_text('{"run": {"tracker": "tensorboard"}}\n')
    done = subprocess.run(
        [sys.executable, "-m", "latentd.training.trackers", "tensorboard", out],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert [tag for tag, _, _ in tensorboard_values(out)] == ["header/text_summary"]
