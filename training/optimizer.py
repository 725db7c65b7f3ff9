"""The optimizer turns gradients into steps: Adam, or Muon for matrices and Adam for the rest."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from latentd.training.muon import Muon

MOMENTUM: Final = 0.95  # for Muon
_ADAM_STATE: Final = {"step", "exp_avg", "exp_avg_sq"}


class Optimizer:
    """Moves a model's parameters by their gradients.

    name: `adam` (Kingma and Ba, 2015, arXiv:1412.6980) or `muon`. With Muon, Adam moves biases.
    """

    def __init__(self, name: str, model: nn.Module) -> None:
        parameters = list(model.parameters())
        weights = [p for p in parameters if p.ndim >= 2] if name == "muon" else []
        rest = [p for p in parameters if p.ndim < 2] if name == "muon" else parameters
        self.adam = torch.optim.Adam(rest, fused=True)
        self.muon = Muon(weights, MOMENTUM) if weights else None

    def step(self, learning_rate: float | Tensor, finite: Tensor) -> None:
        """Move by one step, unless `finite`, a bool tensor (), is False.

        learning_rate: a float32 tensor () if a CUDA graph may capture the step (never with Muon).
        """
        # Adam's fused step reads this on the device, so the host does not wait.
        self.adam.found_inf = (~finite).float()  # type: ignore[attr-defined]
        # The flag does not change the result, but a capture requires it.
        self.adam.param_groups[0] |= {"lr": learning_rate, "capturable": _capturing(learning_rate)}
        self.adam.step()
        # Muon's step cannot read it on the device, so the host waits.
        if self.muon and finite:
            self.muon.param_groups[0]["lr"] = learning_rate
            self.muon.step()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data, for `load_state_dict` on any device."""
        adam = self.adam.state_dict()
        group = adam["param_groups"][0]
        group |= {"lr": float(group["lr"]), "capturable": False}
        return {"adam": adam, "muon": self.muon.state_dict()} if self.muon else adam

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of an optimizer with this name and model. Raises ValueError otherwise."""
        if self.muon:
            _load(self.adam, state["adam"])
            _load(self.muon, state["muon"])
        else:
            _load(self.adam, state)


def _load(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the tensors of `state`. The run's config decides the settings."""
    groups = optimizer.state_dict()["param_groups"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    keys = {"momentum_buffer"} if isinstance(optimizer, Muon) else _ADAM_STATE
    for index, tensors in state["state"].items():
        shape = parameters[index].shape
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        if shapes != {name: torch.Size() if name == "step" else shape for name in keys}:
            raise ValueError("the optimizer's state is not that of the model")
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


def _capturing(number: float | Tensor) -> bool:
    """Whether this number's device is capturing a CUDA graph."""
    return (
        isinstance(number, Tensor) and number.is_cuda and torch.cuda.is_current_stream_capturing()
    )
