"""No operation mixes tensors of CPU and GPU, and no step waits for the GPU.

`meta` replaces the GPU. Its tensors are not on the CPU and have no values, so that a read of one
is also detected.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latentd.training import data, networks
from latentd.training import model as nets
from latentd.training.config import Config
from latentd.training.trainer import Trainer, evaluate

GPU = torch.device("meta")
MOVES = ("aten::_to_copy", "aten::copy_")


class Apart(TorchDispatchMode):
    """Forbids tensors of two devices in one operation, except numbers of the CPU, which a launch
    takes along."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        devices = {t.device for t in tensors if t.ndim or t.device == GPU}
        assert len(devices) < 2 or operation.name() in MOVES, f"{operation} of {devices}"
        if operation is torch.ops.aten._fused_adam_.tensor_lr:
            return None  # meta has no kernel for it, and it returns nothing
        return operation(*args, **(kwargs or {}))


class Generator(torch.Generator):
    """Looks like a generator of the GPU."""

    def __new__(cls, device: object = "cpu") -> Generator:
        return super().__new__(cls)

    def __init__(self, device: Any = "cpu") -> None:
        self.place = torch.device(device)

    @property
    def device(self) -> torch.device:
        return self.place


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Simulate all parts of a GPU except its tensors."""
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    adam = importlib.import_module("torch.optim.adam")  # which torch.optim hides
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda _: None)
    with Apart():
        yield


def run_on_gpu(**settings: Any) -> Trainer:
    config = Config(**{"hidden_size": 8, "latent_size": 3, "batch_size": 500, **settings})
    dataset = data.load(config)
    return Trainer(networks.resolve_architecture(config, dataset.spec.shape), dataset, GPU)


@pytest.mark.parametrize(
    "settings",
    [
        {"ema_decay": 0.9, "likelihood": "bernoulli", "binarization": "dynamic"},
        {"architecture": "gated", "free_bits": 0.1, "likelihood": "discretized-logistic"},
        {"architecture": "resnet", "importance_samples": 3, "fixed_std": 0.3},
        {"model": "ae", "ema_decay": 0.9},
    ],
    ids=str,
)
@pytest.mark.usefixtures("apart")
def test_step_and_validation_stay_on_their_device(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_on_gpu(**settings)
    validated = []

    def line(number: int) -> dict[str, Any]:
        """Return the line of the epoch. A meta tensor has no values."""
        with pytest.raises(RuntimeError, match="meta tensor"):
            evaluate(run.eval_model, run.dataset.validation.x, 0)
        validated.append(number)
        return {}

    monkeypatch.setattr(run, "_log_line", line)
    run.epoch()
    run.epoch()
    assert validated == [1, 2]


@pytest.mark.usefixtures("apart")
def test_recorded_steps_stay_on_their_device() -> None:
    """In recorded steps, learning rates are also tensors."""
    run = run_on_gpu(ema_decay=0.9)
    x = run.dataset.train.x[:500]
    noise = nets.normal((1, 500, 3), run.noise)
    numbers = [torch.zeros((), device=GPU) for _ in range(3)]
    run._train_step(500, x.float(), noise, *numbers)


@pytest.mark.usefixtures("apart")
def test_data_set_is_on_the_gpu() -> None:
    dataset = run_on_gpu().dataset
    for rows in (dataset.train, dataset.validation, dataset.test):
        assert rows.x.device == GPU


@pytest.mark.filterwarnings("ignore:.*to a meta parameter")  # on a real GPU they are copied
@pytest.mark.usefixtures("apart")
def test_checkpoint_is_restored_to_the_gpu() -> None:
    settings: dict[str, Any] = {
        "hidden_size": 8,
        "latent_size": 3,
        "batch_size": 500,
        "ema_decay": 0.9,
    }
    gpu = run_on_gpu(**settings)
    cpu = Trainer(gpu.config, data.load(gpu.config), torch.device("cpu"))
    cpu.step(cpu.dataset.train.x[:500])
    gpu.restore(cpu.checkpoint())
    tensors = tree_leaves((gpu.optimizer.state_dict(), list(gpu.eval_model.parameters()), gpu.sums))
    assert all(t.device == GPU for t in tensors if isinstance(t, Tensor))
    gpu.step(gpu.dataset.train.x[:500])
