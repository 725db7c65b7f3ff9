"""A stopped or interrupted run resumes, and its result equals an uninterrupted run to the bit."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from latentd.training import checkpoint
from latentd.training.trainer import Trainer
from tests.support.processes import running
from tests.support.runs import TINY, TRAIN, assert_same_run, untimed

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("extra", [(), ("--likelihood", "bernoulli", "--binarization", "dynamic")])
def test_resumed_run_equals_an_uninterrupted_one(
    cli: Cli, tmp_path: Path, extra: tuple[str, ...]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli("train", "--out", whole, *TINY, *extra)[0] == 0
    assert cli("train", "--out", parts, *TINY, *extra, "--epochs", 2)[0] == 0
    status, out, err = cli("train", "--out", parts, "--resume", "--epochs", 4)
    assert status == 0, err
    assert [json.loads(line).get("epoch") for line in out.splitlines()] == [None, 3, 4, None]
    assert_same_run(whole, parts)


@pytest.mark.parametrize(
    ("number", "status", "what"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_stopped_run_prints_how_to_resume_and_loses_nothing(
    cli: Cli, tmp_path: Path, number: int, status: int, what: str
) -> None:
    out = tmp_path / "stopped"
    command = [*TRAIN, "--out", out, *TINY, "--epochs", "100000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with running(command, **pipes) as process:
        assert process.stdout
        while '"epoch": 2' not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == status
    assert err.rstrip().endswith(
        f"latentd: {what}. Continue with: latentd train --out {out} --resume"
    )
    assert "Traceback" not in err
    epochs = len(checkpoint.load(out / "last.pt").history) + 2
    assert cli("train", "--out", out, "--resume", "--epochs", epochs)[0] == 0
    assert cli("train", "--out", tmp_path / "straight", *TINY, "--epochs", epochs)[0] == 0
    assert_same_run(out, tmp_path / "straight")


class Finalizer:
    """Its signal comes while Python finalizes it. Python ignores what is raised there."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)
        for _ in range(10):
            pass


@pytest.mark.parametrize(("after", "saved"), [(17, (1, 5)), (24, (1, 12)), (47, (3, 11))])
@pytest.mark.parametrize("raises", [Finalizer, partial(signal.raise_signal, signal.SIGTERM)])
def test_signal_stops_the_run_after_the_current_step(
    cli: Cli,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
    saved: tuple[int, int],
    raises: Callable[[], object],
) -> None:
    steps, step = 0, Trainer.step

    def counted(run: Trainer, x: torch.Tensor) -> None:
        nonlocal steps
        step(run, x)
        if (steps := steps + 1) == after:
            raises()

    out = tmp_path / "run"
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Trainer, "step", counted)
        status = cli("train", "--out", out, *TINY, "--threads", 1)[0]
    assert status == (130 if raises is Finalizer else 143)
    last = checkpoint.load(out / "last.pt")
    assert (len(last.history), last.epoch["steps"]) == saved
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert cli("train", "--out", out, "--resume")[0] == 0
    assert_same_run(out, whole)


def test_finished_run_is_unchanged_when_resumed(cli: Cli, whole: Path) -> None:
    before = untimed(whole)
    assert cli("train", "--out", whole, "--resume")[0] == 0
    assert untimed(whole) == before


def test_run_is_not_overwritten(cli: Cli, whole: Path) -> None:
    before = (whole / "last.pt").read_bytes()
    status, _, err = cli("train", "--out", whole, *TINY)
    assert status == 2
    assert "already holds a run; continue it with --resume" in err
    assert (whole / "last.pt").read_bytes() == before


def test_resume_uses_the_settings_of_the_checkpoint(cli: Cli, whole: Path) -> None:
    status, _, err = cli("train", "--out", whole, "--resume", "--latent-size", 5)
    assert status == 2
    assert "--latent-size is 3 in" in err
    status, _, err = cli("train", "--out", whole, "--resume", "--epochs", 3)
    assert status == 2
    assert "--epochs 3: this run already has 4" in err


def test_resume_rejects_changed_data(cli: Cli, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (60, 4), np.uint8)
    np.save(tmp_path / "rows.npy", rows)
    arguments = ("train", "--data", f"npz:{tmp_path / 'rows.npy'}", "--out", tmp_path / "run")
    assert cli(*arguments, *TINY)[0] == 0
    rows[0, 0] ^= 1
    np.save(tmp_path / "rows.npy", rows)
    status, _, err = cli(*arguments, "--resume")
    assert status == 2
    assert "has changed since this run began" in err
