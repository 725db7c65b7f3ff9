"""A run that starts on one kind of device and resumes on another.

No GPU is needed: the tests turn a checkpoint of the CPU into one of a GPU. The difference is the
state of a CUDA generator, 16 bytes. test_cuda.py has the same tests on real devices.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from latentd.training import checkpoint, data, networks
from latentd.training.checkpoint import Checkpoint
from latentd.training.comparison.trained_runs import _finish
from latentd.training.config import Config
from latentd.training.train import train
from latentd.training.trainer import Trainer
from tests.support import exports
from tests.support.runs import TINY, assert_same_run, untimed

Cli = Callable[..., tuple[int, str, str]]
MOVED = "Resuming on cpu a run started on cuda"


def of_a_gpu(saved: Checkpoint, **settings: Any) -> Checkpoint:
    """Return the checkpoint as a GPU would have written it."""
    state = torch.tensor([7, 0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0, 0, 0, 0, 0], dtype=torch.uint8)
    return dataclasses.replace(
        saved,
        config=dataclasses.replace(saved.config, device="cuda", **settings),
        generators={**saved.generators, "noise": state},
    )


def turn_into_one(path: Path, **settings: Any) -> None:
    checkpoint.save(path, of_a_gpu(checkpoint.load(path), **settings))


@pytest.fixture
def began(cli: Cli, tmp_path: Path) -> Callable[..., Path]:
    """A run of four epochs. The first two ran on a GPU."""

    def run(name: str, *flags: object, **settings: Any) -> Path:
        out = tmp_path / name
        assert cli("train", "--out", out, *TINY, "--epochs", 2, *flags)[0] == 0
        for file in ("last.pt", "best.pt"):
            turn_into_one(out / file, epochs=4, **settings)
        return out

    return run


def test_gpu_run_resumes_on_the_cpu(cli: Cli, began: Any) -> None:
    out = began("run")
    before, saved = untimed(out), checkpoint.load(out / "last.pt")
    status, _, err = cli("train", "--out", out, "--resume", "--device", "cpu")
    assert status == 0, err
    assert err.count(MOVED) == 1
    assert "reseeded from --seed 0 and step 24" in err
    now = checkpoint.load(out / "last.pt")
    assert now.config == dataclasses.replace(saved.config, device="cpu")
    assert untimed(out)[1:3] == before[1:3]
    assert [line["epoch"] for line in now.history] == [1, 2, 3, 4]


@pytest.mark.parametrize("settings", [{"ema_decay": 0.9}, {"optimizer": "muon"}], ids=str)
def test_everything_but_the_noise_is_kept(settings: dict[str, Any]) -> None:
    """With its old noise, the run equals one that never moved, to the bit. The checkpoint is from
    the middle of an epoch."""
    config = Config(hidden_size=8, latent_size=2, epochs=2, batch_size=250, **settings)
    dataset = data.load(config)
    config = networks.resolve_architecture(config, dataset.spec.shape)
    here, there = (Trainer(config, dataset, torch.device("cpu")) for _ in range(2))
    middle: list[Checkpoint] = []

    def after_step() -> None:
        if here.steps_done == here.steps + 2:
            middle.append(copy.deepcopy(here.checkpoint()))

    while len(here.history) < 2:
        here.epoch(after_step)
    [saved] = middle
    there.restore(of_a_gpu(saved))
    there.noise.set_state(saved.generators["noise"])
    there.epoch()
    for line, other in zip(here.history, there.history, strict=True):
        assert {**line, "seconds": 0, "cpu_seconds": 0} == {
            **other,
            "seconds": 0,
            "cpu_seconds": 0,
        }
    ours, theirs = here.checkpoint(), there.checkpoint()
    for name in ("weights", "raw_weights", "optimizer", "generators"):
        one, other = (tree_leaves(getattr(saved, name)) for saved in (ours, theirs))
        for left, right in zip(one, other, strict=True):
            assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


def test_noise_is_seeded_from_the_seed_and_the_step() -> None:
    seeds = set()
    for seed in (0, 1):
        config = Config(hidden_size=4, latent_size=2, seed=seed, batch_size=500)
        dataset = data.load(config)
        run = Trainer(
            networks.resolve_architecture(config, dataset.spec.shape), dataset, torch.device("cpu")
        )
        for steps in (1, 2):
            run.step(dataset.train.x[:500])
            run.restore(of_a_gpu(run.checkpoint()))
            assert run.sums[-1] == steps
            seeds.add(run.noise.initial_seed())
    assert len(seeds | {0, 1}) == 6


def test_moved_run_resumes_to_the_bit(cli: Cli, began: Any) -> None:
    parts, whole = began("parts"), began("whole")
    again = ("--resume", "--device", "cpu")
    assert cli("train", "--out", parts, *again, "--epochs", 3)[0] == 0
    status, _, err = cli("train", "--out", parts, "--resume", "--epochs", 4)
    assert status == 0
    assert MOVED not in err  # it is a run of the CPU now
    assert cli("train", "--out", whole, *again)[0] == 0
    assert_same_run(parts, whole)


def test_precision_stays_unless_another_is_given(cli: Cli, began: Any) -> None:
    stays, changes = began("stays", precision="bfloat16"), began("changes", precision="bfloat16")
    here = ("--resume", "--device", "cpu")
    assert cli("train", "--out", stays, *here)[0] == 0
    assert cli("train", "--out", changes, *here, "--precision", "float32")[0] == 0
    precisions = [checkpoint.load(out / "last.pt").config.precision for out in (stays, changes)]
    assert precisions == ["bfloat16", "float32"]
    assert untimed(stays) != untimed(changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_run_moves_only_when_asked(cli: Cli, began: Any) -> None:
    out = began("run")
    before = (out / "last.pt").read_bytes()
    status, _, err = cli("train", "--out", out, "--resume")
    assert status == 2
    assert "continue it where there is one, or here with --device cpu" in err
    assert (out / "last.pt").read_bytes() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_comparison_moves_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(epochs=2, hidden_size=4, latent_size=2, batch_size=500)
    train(dataclasses.replace(config, epochs=1), tmp_path / "run")
    turn_into_one(tmp_path / "run" / "last.pt", epochs=2)
    _finish(tmp_path / "run", dataclasses.replace(config, device="cpu"))
    assert MOVED in capsys.readouterr().err
    assert len(checkpoint.load(tmp_path / "run" / "last.pt").history) == 2


def test_gpu_checkpoint_is_exported_and_evaluated_on_the_cpu(
    cli: Cli, began: Any, tmp_path: Path, cache: Path
) -> None:
    out = began("run", precision="bfloat16")
    published = exports.export(cli, out / "best.pt", tmp_path / "bundles")
    assert published.manifest.training["config"]["device"] == "cuda"
    arguments = ("evaluate", out, "--rows", 20, "--importance-samples", 10, "--cache", cache)
    status, _, err = cli(*arguments, "--device", "cpu")
    assert status == 0, err
    assert json.loads((out / "evaluation.json").read_text())["data"] == "digits"
