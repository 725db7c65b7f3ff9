"""A run that is killed at any moment resumes to the same result."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentd.training import checkpoint, data, networks
from latentd.training.config import Config
from latentd.training.trainer import Trainer
from tests.support.processes import running, wait_until
from tests.support.runs import TRAIN, untimed

Cli = Callable[..., tuple[int, str, str]]
# All settings with a state or a schedule.
FLAGS = (
    *("--hidden-size", 16, "--latent-size", 3, "--batch-size", 20, "--epochs", 4),
    *("--likelihood", "bernoulli", "--binarization", "dynamic", "--ema-decay", 0.99),
    *("--lr-schedule", "one-cycle", "--kl-warmup-epochs", 3, "--validate-every", 2),
)
STEPS = 73  # in an epoch


def killed_after(command: list[str], path: Path, writes: int) -> int:
    """Run it, and kill it after `path` was replaced `writes` times. Return the last step."""
    seen: set[int] = set()

    def often_enough() -> bool:
        if path.exists():
            seen.add(path.stat().st_mtime_ns)
        return len(seen) >= writes

    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with running(command, **quiet) as process:
        wait_until(often_enough, process)
        process.kill()
    saved = checkpoint.load(path)
    return len(saved.history) * STEPS + saved.epoch["steps"]


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param((17,), id="once"),
        pytest.param(
            (17, 71, 103),
            id="again and again",
            # Slow: each process imports torch and writes to the disk after every step.
            marks=[pytest.mark.slow, pytest.mark.timeout(400)],
        ),
    ],
)
def test_killed_run_resumes_to_the_result_of_an_uninterrupted_one(
    cli: Cli, tmp_path: Path, kills: tuple[int, ...]
) -> None:
    """kills: for each kill, the number of writes of last.pt to wait for."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert cli("train", "--out", whole, *FLAGS)[0] == 0
    often = ("--checkpoint-seconds", "0.001")  # after every step
    begin = [*TRAIN, "--out", str(killed), *map(str, FLAGS), *often]
    go_on = [*TRAIN, "--out", str(killed), "--resume"]
    steps = []
    for writes in kills:
        command = go_on if steps else begin
        steps.append(killed_after(command, killed / "last.pt", writes))
    assert steps == sorted(set(steps)), "it did not go on from where it was"
    assert any(step % STEPS for step in steps), "never killed within an epoch"
    assert cli("train", "--out", killed, "--resume")[0] == 0

    assert untimed(killed) == untimed(whole)
    for name in ("last.pt", "best.pt"):
        first, second = checkpoint.load(whole / name), checkpoint.load(killed / name)
        for part in ("weights", "raw_weights", "generators"):
            left, right = getattr(first, part), getattr(second, part)
            assert left.keys() == right.keys()
            assert all(torch.equal(left[key], right[key]) for key in left), (name, part)
        torch.testing.assert_close(first.optimizer, second.optimizer, rtol=0, atol=0)
    assert not [path for path in killed.iterdir() if path.name.startswith(".")]


class PowerCut(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("steps", [1, 2, 5, 6, 7, 11])
def test_run_resumes_between_any_two_steps(steps: int, optimizer: str) -> None:
    """A step passes nothing to the next one that is not in the checkpoint."""
    config = Config(
        hidden_size=8,
        latent_size=2,
        batch_size=250,
        ema_decay=0.9,
        importance_samples=2,
        epochs=2,
        seed=5,
        optimizer=optimizer,
    )
    dataset = data.load(config)
    config = networks.resolve_architecture(config, dataset.spec.shape)
    whole = Trainer(config, dataset, torch.device("cpu"))
    lines = [whole.epoch(), whole.epoch()]

    cut = Trainer(config, dataset, torch.device("cpu"))

    def until() -> None:
        if cut.steps_done == steps:
            raise PowerCut

    if steps > cut.steps:
        cut.epoch()
    with pytest.raises(PowerCut):
        cut.epoch(until)
    again = Trainer(config, dataset, torch.device("cpu"))
    again.restore(cut.checkpoint())
    while len(again.history) < 2:
        again.epoch()
    for line, other in zip(lines, again.history, strict=True):
        assert {**line, "seconds": 0, "cpu_seconds": 0} == {**other, "seconds": 0, "cpu_seconds": 0}
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name
