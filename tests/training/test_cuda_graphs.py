"""A recorded and replayed step does the same as an ordinary step.

A tape replaces CUDA graphs, so that no GPU is needed. It follows their rules: a replay runs the
same operations on the same memory, with the numbers of the recording. A step that draws at random
or waits for the device cannot be recorded.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latentd.training import data, networks
from latentd.training.config import Config
from latentd.training.cuda_graphs import GraphedStep, Work
from latentd.training.trainer import Trainer

READS = "aten::_local_scalar_dense"  # .item(), bool(), tolist()
DRAWS = ("aten::rand", "aten::normal", "aten::bernoulli", "aten::multinomial")


class Tape(TorchDispatchMode):
    """Records every operation with its inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = operation.name()
        if name == READS or name.startswith(DRAWS):
            raise RuntimeError(f"{name} is not permitted while a graph is recorded")
        given = operation(*args, **(kwargs or {}))
        self.operations.append((operation, args, kwargs or {}, given))
        return given

    def play(self) -> None:
        for operation, args, kwargs, given in self.operations:
            again = operation(*args, **kwargs)
            for place, value in zip(tree_leaves(given), tree_leaves(again), strict=True):
                if isinstance(place, Tensor) and place is not value:
                    place.copy_(value)  # also views: onto themselves


class Tapes:
    """Replaces training.recording.Cuda."""

    def __init__(self) -> None:
        self.runs = self.replays = 0

    def run(self, work: Work) -> None:
        self.runs += 1
        work()

    def capture(self, work: Work) -> Work:
        tape = Tape()
        with tape:
            work()
        # CUDA records without running. A tape cannot, so the first replay is already done.
        first = [True]

        def replay() -> None:
            self.replays += 1
            if not first:
                with torch.no_grad():
                    tape.play()
            first.clear()

        return replay


def run_with(tapes: Tapes | None, **settings: Any) -> Trainer:
    """With schedules that change in each step and a smaller last batch."""
    config = Config(
        **{
            "hidden_size": 16,
            "latent_size": 3,
            "epochs": 10,
            "batch_size": 500,
            "lr_schedule": "cosine",
            "kl_warmup_epochs": 5.0,
            "ema_decay": 0.9,
            **settings,
        }
    )
    dataset = data.load(config)
    run = Trainer(
        networks.resolve_architecture(config, dataset.spec.shape), dataset, torch.device("cpu")
    )
    assert len(dataset.train) % config.batch_size
    if tapes:
        run.graphed_step = GraphedStep(run._train_step, tapes)
    return run


def assert_equal(one: Trainer, other: Trainer) -> None:
    torch.testing.assert_close(one.model.state_dict(), other.model.state_dict())
    torch.testing.assert_close(one.eval_model.state_dict(), other.eval_model.state_dict())
    torch.testing.assert_close(one.sums, other.sums)
    mine, theirs = one.optimizer.state_dict(), other.optimizer.state_dict()
    torch.testing.assert_close(mine["state"], theirs["state"])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"likelihood": "bernoulli", "binarization": "dynamic", "architecture": "gated"},
        {"importance_samples": 3, "kl_warmup_epochs": 0.0, "likelihood": "discretized-logistic"},
        {"free_bits": 0.1},
        {"model": "ae", "kl_warmup_epochs": 0.0, "ema_decay": 0.0},
        {"precision": "bfloat16"},
    ],
    ids=str,
)
def test_replayed_steps_equal_ordinary_steps(settings: dict[str, Any]) -> None:
    tapes = Tapes()
    recorded, ordinary = run_with(tapes, **settings), run_with(None, **settings)
    for _ in range(6):
        line, expected = recorded.epoch(), ordinary.epoch()
        assert math.isclose(line["train_elbo"], expected["train_elbo"], rel_tol=1e-5)
        assert_equal(recorded, ordinary)
    # Each of the two batch sizes runs three times before it is recorded.
    assert (tapes.runs, tapes.replays) == (3 + 3, 6 * recorded.steps - (3 + 3))


def test_replayed_non_finite_step_is_skipped() -> None:
    run = run_with(Tapes())
    for _ in range(6):
        run.epoch()
    before = [parameter.clone() for parameter in run.parameters]
    with torch.no_grad():
        bias = run.parameters[-1]
        bias.fill_(math.nan)
    assert run.graphed_step
    replays = run.graphed_step.backend.replays  # type: ignore[attr-defined]
    run.step(run.dataset.train.x[:500])
    assert run.graphed_step.backend.replays == replays + 1  # type: ignore[attr-defined]
    assert run.sums[-1] == 0
    assert all(map(torch.equal, before[:-1], run.parameters[:-1]))


def test_restored_run_is_recorded_again() -> None:
    """The recording refers to memory that the optimizer no longer uses."""
    run, other = run_with(Tapes()), run_with(None)
    for _ in range(5):
        run.epoch()
        other.epoch()
    run.restore(other.checkpoint())
    assert run.graphed_step is None or not run.graphed_step.replays


def test_training_continues_with_a_message_when_a_step_cannot_be_recorded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tapes = Tapes()
    run = run_with(tapes)
    run.graphed_step = GraphedStep(
        lambda *given: [bool(given[-1]), run._train_step(*given)][1], tapes
    )
    for _ in range(6):
        run.epoch()
    said = capsys.readouterr().err
    assert said.count("CUDA graph capture of a step failed (aten::_local_scalar_dense is") == 1
    assert (tapes.runs, tapes.replays) == (6 * run.steps, 0)
    ordinary = run_with(None)
    for _ in range(6):
        ordinary.epoch()
    assert_equal(run, ordinary)


@pytest.mark.parametrize(
    ("device", "settings", "recorded"),
    [
        ("cuda", {"compile": True}, True),
        ("cuda", {}, False),
        ("cuda", {"compile": True, "optimizer": "muon"}, False),
        ("cpu", {"compile": True}, False),
    ],
)
def test_steps_are_recorded_with_compile_on_a_gpu(
    device: str, settings: dict[str, Any], recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentd.training.trainer.CudaBackend", lambda _: Tapes())
    run = run_with(None, **settings)
    run.device = torch.device(device)
    assert (run._make_graphed_step() is not None) == recorded
