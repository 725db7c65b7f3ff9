"""An exponential moving average of a model's weights. It is smoother than the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from latentd.training.model import Model


class EMA:
    """A model that holds the average. It starts as a copy, and `update` moves it.

    The decay warms up as (1 + step) / (10 + step), so the first weights soon lose their influence.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._averages = [parameter.detach() for parameter in self.model.parameters()]
        self._weights = [parameter.detach() for parameter in model.parameters()]

    def weight(self, step: int) -> float:
        """The weight given to the model's weights after step `step`, counted from 0."""
        return 1 - min(self.decay, (1 + step) / (10 + step))

    def update(self, weight: float | Tensor) -> None:
        """Move the averages toward the weights by the fraction `weight`: a float, or a float32
        tensor () on the weights' device."""
        if isinstance(weight, Tensor):  # lerp of a list would read it and wait for the device
            step = torch._foreach_sub(self._weights, self._averages)
            torch._foreach_mul_(step, weight)
            torch._foreach_add_(self._averages, step)
        else:
            torch._foreach_lerp_(self._averages, self._weights, weight)
