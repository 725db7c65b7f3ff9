"""Two processes of torchrun compute the same as one, and only one of them prints."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from latentd.training import checkpoint, data, networks
from latentd.training.config import Config
from latentd.training.trainer import Trainer

Cli = Callable[..., tuple[int, str, str]]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

RANK = """
import pathlib, sys, torch
from latentd.training import data, networks, distributed
from latentd.training.config import Config
from latentd.training.trainer import Trainer

with distributed.processes(torch.device("cpu")) as device:
    config = Config(**{settings!r})
    dataset = data.load(config)
    run = Trainer(networks.resolve_architecture(config, dataset.spec.shape), dataset, device)
    run.step(dataset.train.x[:{rows}])
    gradients = [parameter.grad for parameter in run.parameters]
    torch.save((gradients, run.sums), f"{{sys.argv[1]}}/{{torch.distributed.get_rank()}}.pt")
threads = [task.read_text() for task in pathlib.Path("/proc/self/task").glob("*/comm")]
assert not [name for name in threads if "gloo" in name], threads
"""


def torchrun(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TORCHRUN, *map(str, command)], capture_output=True, text=True, check=False
    )


def test_gradient_is_of_the_whole_batch(tmp_path: Path) -> None:
    """The number of rows is odd, so that an average of averages would be wrong."""
    settings = {
        "hidden_size": 16,
        "latent_size": 3,
        "importance_samples": 1,
        "free_bits": 0.02,
        "batch_size": 7,
    }
    (tmp_path / "rank.py").write_text(RANK.format(settings=settings, rows=7))
    done = torchrun(tmp_path / "rank.py", tmp_path)
    assert done.returncode == 0, done.stderr

    config = Config(**settings)
    dataset = data.load(config)
    run = Trainer(
        networks.resolve_architecture(config, dataset.spec.shape), dataset, torch.device("cpu")
    )
    run.step(dataset.train.x[:7])
    gradients = [parameter.grad for parameter in run.parameters]
    for rank in (0, 1):
        theirs, sums = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for ours, others in zip(gradients, theirs, strict=True):
            torch.testing.assert_close(others, ours, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sums, run.sums, rtol=1e-6, atol=1e-5)


def test_two_processes_train_as_one(cli: Cli, tmp_path: Path) -> None:
    flags = (
        "--epochs",
        2,
        "--hidden-size",
        16,
        "--latent-size",
        3,
        "--batch-size",
        97,
        "--ema-decay",
        0.9,
    )
    one, two = tmp_path / "one", tmp_path / "two"
    assert cli("train", "--out", one, *flags)[0] == 0
    done = torchrun("-m", "latentd", "train", "--out", two, *flags)
    assert done.returncode == 0, done.stderr
    ours, theirs = (checkpoint.load(folder / "last.pt") for folder in (one, two))
    torch.testing.assert_close(theirs.weights, ours.weights, rtol=1e-3, atol=1e-4)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.get("epoch") for line in said] == [None, 1, 2, None]  # only one prints
    assert said[0]["processes"] == 2
    for line, other in zip(said[1:3], ours.history, strict=True):
        assert abs(line["validation_elbo"] - other["validation_elbo"]) < 1e-3
