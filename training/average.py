"""An exponential moving average of a model's weights, smoother than any moment of them."""

from __future__ import annotations

import copy

import torch

from training.model import Model


class Average:
    """The average's own model. Begins as a copy; `follow` moves it.

    The decay warms up as (1 + step) / (10 + step), so that the first weights are soon forgotten.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._mine = [parameter.detach() for parameter in self.model.parameters()]
        self._theirs = [parameter.detach() for parameter in model.parameters()]

    def follow(self, step: int) -> None:
        """Move towards the weights after step `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._mine, self._theirs, 1 - decay)
