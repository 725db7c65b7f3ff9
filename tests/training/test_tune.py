"""`latentd tune`: real searches on the digits, what they leave behind, how they stop and go on."""

from __future__ import annotations

import contextlib
import csv
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentd.training import checkpoint
from latentd.training.__main__ import main
from latentd.training.signals import StopRequest
from latentd.training.trainer import Trainer
from tests.support.processes import StartProcess
from tests.support.runs import assert_same_run

Cli = Callable[..., tuple[int, str, str]]

# A small weight of the KL, and small batches: latents are active after two epochs.
FIXED = (
    *("--data", "digits", "--epochs", 2, "--batch-size", 50, "--beta", 0.01, "--threads", 1),
    *("--search", "hidden-size=8:32", "--search", "learning-rate=0.004:0.02:log"),
)
STEPS = 30  # in an epoch


def trials(out: Path) -> list[dict[str, str]]:
    """What trials.csv says, without what no two searches have in common."""
    with (out / "trials.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def with_checkpoints(out: Path) -> set[str]:
    return {path.parent.name for path in (out / "trials").glob("*/*.pt")}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search of three trials."""
    out = tmp_path_factory.mktemp("tuned") / "out"
    assert main(["tune", "--out", str(out), "--trials", "3", *map(str, FIXED)]) == 0
    return out


def test_search_records_every_trial_and_keeps_the_best_run(tuned: Path) -> None:
    rows = trials(tuned)
    assert [row["trial"] for row in rows] == ["0", "1", "2"]
    assert {row["state"] for row in rows} == {"finished"}
    assert len({row["learning-rate"] for row in rows}) == 3
    assert all(8 <= int(row["hidden-size"]) <= 32 for row in rows)
    assert all(4 <= int(row["latent-size"]) <= 64 for row in rows)  # searched without being asked
    assert "beta" not in rows[0]
    best = max(rows, key=lambda row: float(row["validation_elbo"]))
    folder = f"{int(best['trial']):04}"
    assert with_checkpoints(tuned) == {folder}
    saved = checkpoint.load(tuned / "trials" / folder / "best.pt")
    assert saved.history[-1]["validation_elbo"] == float(best["validation_elbo"])
    assert str(saved.config.learning_rate) == best["learning-rate"]
    for picture in (tuned / "tuning.png", tuned / "trials" / folder / "samples.png"):
        with Image.open(picture) as opened:
            assert np.asarray(opened).std() > 10


def test_printed_command_trains_the_best_run_again(cli: Cli, tuned: Path) -> None:
    status, printed, err = cli("tune", "--out", tuned, "--trials", 3, *FIXED)  # nothing is left
    assert status == 0, err
    (command,) = (line for line in printed.splitlines() if line.startswith("train again"))
    program, *words = shlex.split(command.removeprefix("train again"))
    assert program == "latentd"
    assert cli(*words)[0] == 0
    (best,) = with_checkpoints(tuned)
    assert_same_run(tuned / "trials" / best, Path(f"{tuned}-best"))


def test_search_begins_with_what_train_would_use(cli: Cli, tmp_path: Path) -> None:
    fixed = ("--epochs", 1, "--latent-size", 4, "--hidden-size", 8, "--beta", 0.01)
    status, _, err = cli("tune", "--out", tmp_path, "--trials", 1, *fixed)
    assert status in (0, 1), err
    assert trials(tmp_path)[0]["learning-rate"] == "0.002"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (("--epochs", 3), "--epochs is 2 in {out} and 3 here"),
        (("--search", "depth=1:3"), "--depth is None in {out} and searched in 1:3 here"),
        (("--latent-size", 5), "--latent-size is searched in 4:64:log in {out} and 5 here"),
    ],
)
def test_search_does_not_go_on_with_other_settings(
    cli: Cli, tuned: Path, changed: tuple[object, ...], words: str
) -> None:
    status, printed, err = cli("tune", "--out", tuned, "--trials", 4, *FIXED, *changed)
    assert (status, printed) == (2, "")
    assert words.format(out=tuned) in err
    assert len(trials(tuned)) == 3


def test_search_does_not_go_on_with_other_rows(cli: Cli, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (60, 5), np.uint8)
    np.save(tmp_path / "rows.npy", rows)
    given = ("--data", f"npz:{tmp_path / 'rows.npy'}", "--epochs", 1, "--out", tmp_path / "out")
    assert cli("tune", "--trials", 1, *given)[0] in (0, 1)
    np.save(tmp_path / "rows.npy", rows[:-1])
    status, _, err = cli("tune", "--trials", 2, *given)
    assert status == 2
    assert "rows.npy has changed since the search" in err


@pytest.mark.parametrize(
    ("number", "status", "words"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"), (None, 0, "")],
    ids=["SIGINT", "SIGTERM", "budget"],
)
def test_stopped_search_reports_and_goes_on(
    cli: Cli,
    tuned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int | None,
    status: int,
    words: str,
) -> None:
    """None: the budget is spent. Each stops within the second epoch of trial 1."""
    steps, step, requests = 0, Trainer.step, list[StopRequest]()

    def counted(run: Trainer, x: torch.Tensor) -> None:
        nonlocal steps
        step(run, x)
        steps += 1
        if steps == 3 * STEPS + 5:
            if number is None:
                requests[0].make(signal.SIGALRM)
            else:
                signal.raise_signal(number)

    with monkeypatch.context() as meanwhile:
        begin = StopRequest.__init__

        def noted(request: StopRequest, *seconds: float) -> None:
            begin(request, *seconds)
            requests.append(request)

        meanwhile.setattr(Trainer, "step", counted)
        meanwhile.setattr(StopRequest, "__init__", noted)
        given = ("tune", "--out", tmp_path / "out", "--trials", 3, "--budget", 60, *FIXED)
        stopped, printed, err = cli(*given)
    assert stopped == status, err
    assert f"{words}. The same command goes on" in err or not words
    assert [row["state"] for row in trials(tmp_path / "out")] == ["finished", "unfinished"]
    assert "best         trial " in printed
    last = checkpoint.load(tmp_path / "out" / "trials" / "0001" / "last.pt")
    assert (len(last.history), last.epoch["steps"]) == (1, 5)
    assert cli(*given)[0] == 0
    assert trials(tmp_path / "out") == trials(tuned)
    assert with_checkpoints(tmp_path / "out") == with_checkpoints(tuned)


def test_two_commands_share_a_search(tmp_path: Path, start_process: StartProcess) -> None:
    command = [sys.executable, "-m", "latentd", "tune", "--out", tmp_path, "--trials", 4, *FIXED]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    both = [start_process(command, **pipes) for _ in range(2)]
    for process in both:
        _, err = process.communicate()
        assert process.returncode == 0, err
    assert main([*map(str, command[3:])]) == 0  # what both have found
    rows = trials(tmp_path)
    assert [row["state"] for row in rows] == ["finished"] * 4
    assert len({row["learning-rate"] for row in rows}) == 4
    assert len(with_checkpoints(tmp_path)) == 1


def test_study_that_breaks_ends_the_search_with_a_message(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, database = Trainer.step, tmp_path / "out" / "study.db"

    def breaks(run: Trainer, x: torch.Tensor) -> None:
        step(run, x)
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("DROP TABLE IF EXISTS trial_intermediate_values")

    monkeypatch.setattr(Trainer, "step", breaks)
    status, _, err = cli("tune", "--out", database.parent, "--trials", 1, "--epochs", 1)
    assert status == 1
    assert f"{database} cannot be used any more" in err
    assert "Traceback" not in err


def test_trial_that_diverges_is_recorded_and_the_search_goes_on(cli: Cli, tmp_path: Path) -> None:
    given = ("--epochs", 1, "--latent-size", 3, "--hidden-size", 8, "--beta", 0.01, "--seed", 1)
    rates = ("--search", "learning-rate=0.002,1e30")
    _, printed, err = cli("tune", "--out", tmp_path, "--trials", 6, *given, *rates)
    rows = trials(tmp_path)
    assert len(rows) == 6
    assert {row["learning-rate"] for row in rows if row["state"] == "failed"} == {"1e+30"}
    assert {row["learning-rate"] for row in rows if row["state"] != "failed"} == {"0.002"}
    assert "failed: Training diverged in epoch 1" in err
    assert "Training diverged" in next(row["error"] for row in rows if row["state"] == "failed")
    assert "failed" in printed


def test_search_ends_if_every_trial_fails(cli: Cli, tmp_path: Path) -> None:
    rates = ("--search", "learning-rate=1e30,1e31")
    status, _, err = cli("tune", "--out", tmp_path, "--trials", 9, "--epochs", 1, *rates)
    assert status == 1
    assert "All 5 trials have failed. The last one: Training diverged" in err


def test_collapsed_trial_is_not_chosen(cli: Cli, tmp_path: Path) -> None:
    given = ("--epochs", 1, "--latent-size", 3, "--hidden-size", 8, "--beta", 1e6)
    status, printed, err = cli("tune", "--out", tmp_path, "--trials", 1, *given)
    assert status == 1
    assert "finished, collapsed" in printed
    assert "The posterior of every trial collapsed" in err
    assert "--free-bits" in err


def test_pictures_are_decoded_once_for_all_trials(
    cli: Cli, tmp_path: Path, picture_folder: Path
) -> None:
    given = ("--data", f"images:{picture_folder}", "--epochs", 2, "--batch-size", 4)
    fixed = ("--beta", 1e-4, "--learning-rate", 0.01, "--latent-size", 4)
    status, printed, err = cli("tune", "--out", tmp_path / "out", "--trials", 2, *given, *fixed)
    assert status == 0, printed + err
    (best,) = with_checkpoints(tmp_path / "out")
    pictures = tmp_path / "out" / "trials" / best / "pictures" / "pixels.npy"
    assert pictures.samefile(tmp_path / "out" / "pictures" / "pixels.npy")
    stamp = pictures.stat().st_mtime_ns
    run = pictures.parents[1]
    exported = ("--bundles", tmp_path / "models", "--name", "tuned")
    status, _, err = cli("export", "--checkpoint", run / "best.pt", *exported)
    assert status == 0, err
    assert pictures.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "Say when to stop: --budget MINUTES, --trials N, or both."),
        (("--budget", "0"), "--budget must be a number of minutes above 0"),
        (("--budget", "nan"), "--budget must be a number of minutes above 0"),
        (("--trials", "1", "--model", "ae"), "--model ae has no ELBO"),
        (("--trials", "1", "--search", "epochs=1:9"), "Fix it with --epochs instead"),
        (("--trials", "1", "--data", "npz:nowhere.npy"), "nowhere.npy does not exist"),
        (("--trials", "1", "--out", "{run}"), "holds a run of `latentd train`"),
        (("--trials", "1", "--out", "{file}"), "cannot be made"),
        (("--trials", "1", "--out", "{foreign}"), "study.db cannot be used as a study"),
    ],
)
def test_invalid_search_is_refused_with_a_message(
    cli: Cli, tmp_path: Path, flags: tuple[str, ...], words: str
) -> None:
    places = {name: tmp_path / name for name in ("run", "file", "foreign")}
    places["run"].mkdir()
    (places["run"] / "last.pt").touch()
    places["file"].touch()
    places["foreign"].mkdir()
    (places["foreign"] / "study.db").write_text("not a database at all, but a text\n" * 99)
    given = [flag.format(**places) for flag in flags]
    status, printed, err = cli("tune", "--out", tmp_path / "out", *given)
    assert (status, printed) == (2, "")
    assert words in err
    assert "Traceback" not in err
