"""Training on a machine with an NVIDIA GPU."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from latentd.training import checkpoint, data, networks
from latentd.training.checkpoint import Checkpoint
from latentd.training.config import Config
from latentd.training.cuda_graphs import CudaBackend, GraphedStep
from latentd.training.model import to_target
from latentd.training.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
COMPILED = {"architecture": "gated", "compile": True}


def run(device: torch.device = CUDA, **settings: Any) -> Trainer:
    config = Config(
        **{
            "likelihood": "bernoulli",
            "binarization": "dynamic",
            "precision": "bfloat16",
            "ema_decay": 0.99,
            **settings,
        }
    )
    dataset = data.load(config)
    return Trainer(networks.resolve_architecture(config, dataset.spec.shape), dataset, device)


def through_a_file(learner: Trainer, path: Path) -> Checkpoint:
    checkpoint.save(path, learner.checkpoint())
    return checkpoint.load(path)


def assert_same_bits(one: Trainer, other: Trainer) -> None:
    for name in ("model", "evaluated"):
        left, right = getattr(one, name).state_dict(), getattr(other, name).state_dict()
        assert all(torch.equal(left[key], right[key]) for key in left), name
    assert torch.equal(one.noise.get_state(), other.noise.get_state())


@pytest.mark.parametrize("net", ["mlp", "gated", "resnet"])
def test_loss_falls_on_the_gpu(net: str) -> None:
    learner = run(architecture=net)
    lines = [learner.epoch() for _ in range(10)]
    assert lines[-1]["validation_elbo"] > lines[0]["validation_elbo"] + 1
    assert not any(line["skipped_steps"] for line in lines)


def test_non_finite_step_is_skipped() -> None:
    learner = run()
    learner.step(learner.dataset.train.x[:32])
    before = [parameter.clone() for parameter in learner.parameters]
    learner.parameters[0].register_hook(lambda gradient: gradient * math.nan)
    learner.step(learner.dataset.train.x[:32])
    assert all(map(torch.equal, before, learner.parameters))
    assert learner.sums[-1] == 1  # of two steps


@pytest.mark.parametrize(
    "settings", [{"architecture": "mlp"}, {"architecture": "resnet"}, COMPILED], ids=str
)
def test_step_does_not_wait_for_the_gpu(settings: dict[str, Any]) -> None:
    learner = run(**settings)
    batch = learner.dataset.train.x[:32]
    for _ in range(5):  # the first makes Adam's state, the fourth is recorded
        learner.step(batch)
    assert not learner.graphed_step or learner.graphed_step.replays
    torch.cuda.set_sync_debug_mode("error")
    try:
        learner.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_binarized_pixels_are_white_with_their_brightness_as_probability() -> None:
    x = torch.arange(256, dtype=torch.uint8, device=CUDA).repeat(20_000, 1)
    often = to_target(x, torch.Generator(CUDA).manual_seed(0), binarize=True).double().mean(0).cpu()
    torch.testing.assert_close(
        often, torch.arange(256) / 255.0, atol=0.02, rtol=0, check_dtype=False
    )


def test_data_set_is_on_the_gpu() -> None:
    dataset = run().dataset
    for part in (dataset.train, dataset.validation, dataset.test):
        assert part.x.is_cuda
        assert part.x.dtype == torch.uint8  # a quarter of the memory of floats


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("net", ["gated", "resnet"])
def test_replayed_steps_equal_ordinary_ones_to_the_bit(net: str, precision: str) -> None:
    """With schedules that change in each step and a smaller last batch."""
    moving = {"lr_schedule": "cosine", "kl_warmup_epochs": 5.0, "epochs": 10, "batch_size": 500}
    settings = {"architecture": net, "precision": precision, "compile": True, **moving}
    recorded, ordinary = run(**settings), run(**settings)
    assert recorded.graphed_step
    assert ordinary.graphed_step
    ordinary.graphed_step.refused = True
    for _ in range(6):
        line, expected = recorded.epoch(), ordinary.epoch()
        assert line["train_elbo"] == expected["train_elbo"]
    assert len(recorded.graphed_step.replays) == 2
    assert not ordinary.graphed_step.replays
    assert_same_bits(recorded, ordinary)


@pytest.mark.parametrize("net", ["gated", "resnet"])
def test_compiled_steps_learn_the_same(net: str) -> None:
    compiled, eager = (
        run(architecture=net, precision="float32", batch_size=500, compile=compile)
        for compile in (True, False)
    )
    assert eager.graphed_step is None
    for _ in range(6):
        line, expected = compiled.epoch(), eager.epoch()
        for part in ("train_elbo", "validation_elbo"):
            assert math.isclose(line[part], expected[part], rel_tol=2e-3), part


def test_replayed_non_finite_step_is_skipped() -> None:
    learner = run(**COMPILED, batch_size=500)
    for _ in range(2):
        learner.epoch()
    batch = learner.dataset.train.x[:500]
    with torch.no_grad():
        learner.parameters[-1].fill_(math.nan)
    before = [parameter.clone() for parameter in learner.parameters[:-1]]
    learner.step(batch)
    assert learner.graphed_step
    assert list(learner.graphed_step.replays) == [500]
    assert all(map(torch.equal, before, learner.parameters))
    assert learner.sums[-1] == 0


def test_training_continues_with_a_message_when_a_step_cannot_be_recorded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    learner, ordinary = run(batch_size=500), run(batch_size=500)

    def asks(*given: Any) -> None:
        learner._train_step(*given)
        assert learner.sums[0].item() != 0  # waits for the device

    learner.graphed_step = GraphedStep(asks, CudaBackend(CUDA))
    for _ in range(4):
        line, expected = learner.epoch(), ordinary.epoch()
        assert not line["skipped_steps"]
        assert math.isclose(line["train_elbo"], expected["train_elbo"], rel_tol=2e-3)
    assert capsys.readouterr().err.count("could not be recorded as a CUDA graph") == 1
    assert not learner.graphed_step.replays


@pytest.mark.parametrize("settings", [{"architecture": "mlp"}, COMPILED], ids=str)
def test_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    whole, first, second = (run(**settings, batch_size=500) for _ in range(3))
    for _ in range(6):
        whole.epoch()
    for _ in range(2):
        first.epoch()
    second.restore(through_a_file(first, tmp_path / "last.pt"))
    for _ in range(4):
        second.epoch()
    assert_same_bits(whole, second)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("compile", [False, True])
def test_run_moves_to_the_cpu_and_back(optimizer: str, compile: bool, tmp_path: Path) -> None:
    settings = {"optimizer": optimizer, "precision": "float32", "batch_size": 500}
    there = run(**settings, compile=compile)
    here, back = run(CPU, **settings), run(**settings, compile=compile)
    for _ in range(4):
        there.epoch()
    here.restore(through_a_file(there, tmp_path / "last.pt"))
    moved = tree_leaves((here.optimizer.state_dict(), here.model.state_dict(), here.sums))
    assert not any(value.is_cuda for value in moved if isinstance(value, torch.Tensor))
    here.epoch()
    back.restore(through_a_file(here, tmp_path / "last.pt"))
    lines = [back.epoch() for _ in range(4)]
    assert [line["epoch"] for line in back.history] == list(range(1, 10))
    assert not any(line["skipped_steps"] for line in back.history)
    assert lines[-1]["validation_elbo"] > there.history[-1]["validation_elbo"]
