"""The optimizers: which parameters each one moves, and how far."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from latentd.training.muon import Muon
from latentd.training.optimizer import MOMENTUM, Optimizer

TRUE = torch.tensor(True)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 40))


def moved(name: str, model: nn.Module, finite: Tensor = TRUE) -> dict[str, Tensor]:
    """Return how far one step with a learning rate of 0.01 moves a copy of each parameter."""
    model = copy.deepcopy(model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    model(torch.rand(8, 1, 4, 4)).square().sum().backward()
    Optimizer(name, model).step(0.01, finite)
    return {name: value.detach() - before[name] for name, value in model.named_parameters()}


def test_muon_moves_a_matrix_equally_in_all_directions(model: nn.Module) -> None:
    step = moved("muon", model)["2.weight"]
    length = torch.linalg.svdvals(step) / (0.01 * 0.2 * 40**0.5)
    # Five iterations end between 0.5 and 1.5, or below for the smallest ones. Adam's do not.
    assert length.median() > 0.5
    assert length.max() < 1.5
    adams = torch.linalg.svdvals(moved("adam", model)["2.weight"])
    assert adams.median() / adams.max() < 0.3 < length.median() / length.max()


def test_muon_takes_a_convolution_as_a_matrix(model: nn.Module) -> None:
    step = moved("muon", model)["0.weight"].flatten(1)  # a row for each output channel
    length = torch.linalg.svdvals(step) / (0.01 * 0.2 * 9**0.5)
    assert length.min() > 0.3
    assert length.max() < 1.5


def test_muon_uses_adam_for_biases(model: nn.Module) -> None:
    torch.manual_seed(2)
    muon = moved("muon", model)
    torch.manual_seed(2)
    adam = moved("adam", model)
    for name in ("0.bias", "2.bias"):
        torch.testing.assert_close(muon[name], adam[name], rtol=0, atol=0)
    # Its steps have the same length, so that a learning rate means the same for both.
    ratio = muon["2.weight"].norm() / adam["2.weight"].norm()
    assert 0.1 < ratio < 1


def test_muon_equals_torchs(model: nn.Module) -> None:
    """torch computes in bfloat16, so steps agree roughly."""
    ours, theirs = copy.deepcopy(model[2]), copy.deepcopy(model[2])
    optimizers = (
        Muon([ours.weight], MOMENTUM),
        torch.optim.Muon(
            [theirs.weight], weight_decay=0.0, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"
        ),
    )
    for _ in range(3):
        gradient = torch.randn(40, 12)
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            layer.weight.grad = gradient.clone()
            optimizer.step()
    start = model[2].weight
    moved_by, error = ours.weight - start, ours.weight - theirs.weight
    assert error.norm() < 0.03 * moved_by.norm()


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_non_finite_step_moves_nothing(name: str, model: nn.Module) -> None:
    assert not any(step.any() for step in moved(name, model, torch.tensor(False)).values())
