"""`latentd train`: what it learns, writes and prints."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentd.training import checkpoint, data
from latentd.training.config import Config
from tests.support.events import tensorboard_values
from tests.support.runs import TINY, TRAIN, assert_same_run, lines, untimed

Cli = Callable[..., tuple[int, str, str]]


def test_training_restores_the_processor_settings(whole: Path) -> None:
    smallest = np.array([5e-324])
    assert (smallest * 1.0 > 0).all(), "numbers this small are still flushed to zero"


def test_progress_bar_is_shown_on_a_terminal(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    status, _, err = cli("train", "--out", tmp_path / "run", *TINY)
    assert status == 0
    assert "training: 100%" in err


def test_train_in_a_process_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    done = subprocess.run(
        [*TRAIN, "--data", "digits", "--epochs", "12", "--out", out],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no bar on a pipe
    header, *epochs, test = lines(out)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [header, *epochs, test]
    assert header["run"]["architecture"] == "mlp"
    assert [header["split"][part] for part in ("train", "validation", "test")] == [1455, 162, 180]
    assert [line["epoch"] for line in epochs] == list(range(1, 13))
    for line in epochs:
        assert line["unit"] == "nats per example"
        assert line["skipped_steps"] == 0
        for part in ("train", "validation"):
            elbo, terms = line[f"{part}_elbo"], (line[f"{part}_distortion"], line[f"{part}_rate"])
            assert math.isclose(elbo, -sum(terms), rel_tol=1e-6, abs_tol=1e-4)
    assert epochs[-1]["validation_elbo"] > epochs[0]["validation_elbo"] + 15
    assert epochs[-1]["validation_rate"] > 1  # the code is used
    assert test["best_epoch"] == max(epochs, key=lambda line: line["validation_elbo"])["epoch"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["best.pt", "last.pt", "log.jsonl", "tensorboard"]
        + [f"{name}.png" for name in ("curves", "interpolation", "reconstructions", "samples")]
    )
    best = checkpoint.load(out / "best.pt")
    assert best.history == epochs[: test["best_epoch"]]
    assert best.split == header["split"]
    for path in out.glob("*.png"):
        with Image.open(path) as picture:
            assert np.asarray(picture).std() > 10, path.name  # not blank


def test_same_seed_gives_the_same_run(cli: Cli, whole: Path, tmp_path: Path) -> None:
    assert cli("train", "--out", tmp_path / "again", *TINY)[0] == 0
    assert_same_run(whole, tmp_path / "again")
    assert cli("train", "--out", tmp_path / "other", *TINY, "--seed", 1)[0] == 0
    assert untimed(whole) != untimed(tmp_path / "other")


def test_out_is_rejected_when_it_is_a_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, _, err = cli("train", "--out", tmp_path / "file", *TINY)
    assert status == 2
    assert "cannot be made" in err


def test_tensorboard_has_the_values_of_the_log(whole: Path) -> None:
    values = tensorboard_values(whole)
    plotted = {(tag, step): value.simple_value for tag, step, value in values}
    for line in lines(whole)[1:-1]:
        for tag, name in (("elbo/train", "train_elbo"), ("rate/validation", "validation_rate")):
            assert math.isclose(plotted[tag, line["epoch"]], line[name], rel_tol=1e-6)
    assert ("learning_rate", 4) in plotted


def test_run_out_of_patience_stops_and_stays_stopped(cli: Cli, tmp_path: Path) -> None:
    """The step is so large that the loss soon grows."""
    out = tmp_path / "run"
    flags = (*TINY, "--learning-rate", 0.3, "--epochs", 60, "--patience", 3)
    assert cli("train", "--out", out, *flags)[0] == 0
    _, *epochs, test = lines(out)
    assert len(epochs) < 60
    assert len(epochs) == test["best_epoch"] + 3
    before = untimed(out)
    assert cli("train", "--out", out, "--resume")[0] == 0
    assert untimed(out) == before
    assert cli("train", "--out", out, "--resume", "--patience", 5)[0] == 0
    assert len(lines(out)) > len(before)


def test_patience_counts_validated_epochs_only(cli: Cli, tmp_path: Path) -> None:
    """Epochs without a validation do not count against patience."""
    flags = (*TINY, "--epochs", 6, "--validate-every", 3, "--patience", 2)
    assert cli("train", "--out", tmp_path / "run", *flags)[0] == 0
    _, *epochs, test = lines(tmp_path / "run")
    assert len(epochs) == test["best_epoch"] == 6  # it still improves at that epoch


def test_train_with_few_rows(cli: Cli, tmp_path: Path) -> None:
    """Ten rows leave one test row, and no second one for an interpolation."""
    np.save(tmp_path / "rows.npy", np.arange(80, dtype=np.uint8).reshape(10, 8))
    data_flag = ("--data", f"npz:{tmp_path / 'rows.npy'}")
    status, _, err = cli("train", "--out", tmp_path / "run", *data_flag, *TINY)
    assert status == 0, err
    assert (tmp_path / "run" / "interpolation.png").exists()


def test_out_of_memory_is_reported(cli: Cli, tmp_path: Path) -> None:
    status, _, err = cli("train", "--out", tmp_path / "run", "--importance-samples", 10**12)  # 8 PB
    assert status == 1
    assert err.splitlines()[-1].startswith("latentd: out of memory. ")
    assert "Traceback" not in err


def test_validation_runs_every_given_epochs_and_at_the_end(cli: Cli, tmp_path: Path) -> None:
    assert cli("train", "--out", tmp_path / "run", *TINY, "--validate-every", 3)[0] == 0
    _, *epochs, test = lines(tmp_path / "run")
    assert [line["epoch"] for line in epochs if "validation_elbo" in line] == [
        3,
        4,
    ]  # and the last epoch
    assert test["best_epoch"] in (3, 4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"likelihood": "bernoulli"}, "not a likelihood"),
        ({"likelihood": "bernoulli", "binarization": "dynamic"}, "ELBO of binarized pixels"),
        ({"likelihood": "gaussian"}, "ELBO of a density"),
        ({"model": "ae"}, "no ELBO"),
    ],
)
def test_log_labels_its_numbers(
    cli: Cli, tmp_path: Path, settings: dict[str, str], words: str
) -> None:
    flags = [text for name, value in settings.items() for text in (f"--{name}", value)]
    assert cli("train", "--out", tmp_path / "run", *TINY, *flags, "--epochs", 1)[0] == 0
    assert words in lines(tmp_path / "run")[0]["elbo"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_nets_learn_the_same(cli: Cli, whole: Path, tmp_path: Path) -> None:
    assert cli("train", "--out", tmp_path / "run", *TINY, "--compile")[0] == 0
    eager, compiled = (checkpoint.load(out / "last.pt") for out in (whole, tmp_path / "run"))
    torch.testing.assert_close(compiled.weights, eager.weights, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_run_resumes_to_the_bit(cli: Cli, tmp_path: Path) -> None:
    """The order in which batch sizes are compiled does not matter."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = (*TINY, "--compile", "--batch-size", 400)
    assert cli("train", "--out", whole, *flags)[0] == 0
    assert cli("train", "--out", parts, *flags, "--epochs", 2)[0] == 0
    assert cli("train", "--out", parts, "--resume", "--epochs", 4)[0] == 0
    assert_same_run(whole, parts)


@pytest.mark.slow
def test_default_model_keeps_digits_recognizable(cli: Cli, tmp_path: Path) -> None:
    """A classifier trained on the pixels must read the reconstructions of test rows."""
    from sklearn.svm import SVC

    from latentd.training.model import to_data

    assert cli("train", "--out", tmp_path / "run")[0] == 0
    dataset = data.load(Config())
    model = checkpoint.load(tmp_path / "run" / "best.pt").model()
    with torch.no_grad():
        again = to_data(model, model.decode(model.encode(dataset.test.x)[0]))
    judge = SVC(C=10, gamma=0.05)
    judge.fit(dataset.train.x.flatten(1).numpy() / 255, dataset.train.y)
    assert dataset.test.y is not None
    assert judge.score(again.flatten(1).numpy() / 255, dataset.test.y) >= 0.95
