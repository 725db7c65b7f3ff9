"""The two halves of an owner's model in PyTorch: its own encode and decode, in one form."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from latentd.training.adopt.modules import returned
from latentd.training.array import Array

_MAX_WORDS: Final = 300  # characters
_TWO_MODES: Final = (_NormBase, _DropoutNd)


class Half(nn.Module):
    """A function of one tensor that gives a tuple of tensors, with the modules that it uses, so
    that the exporter finds their weights."""

    def __init__(
        self, function: Callable[[Tensor], Any], form: Callable[[Any], tuple[Tensor, ...]]
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_modules(function))
        self._function, self._form = function, form

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return self._form(self._function(rows.clone()))  # it may write into them

    @property
    def like(self) -> Tensor:
        """A tensor of the type and on the device of the weights."""
        found = (p for p in self.parameters() if p.is_floating_point())
        return next(found, torch.zeros(0)).detach()

    @property
    def in_training(self) -> set[str]:
        """The classes of its modules that are in training mode and compute something else then."""
        inner = (module for part in self.parts for module in part.modules())
        return {type(m).__name__ for m in inner if m.training and isinstance(m, _TWO_MODES)}

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """In evaluation mode and without gradients; afterwards as it was."""
        before = [module for module in self.modules() if module.training]
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module in before:
                module.training = True

    def run(self, rows: Array) -> list[Array]:
        """On an array as the net has it; floats take the type of the weights."""
        like = self.like
        dtype = torch.uint8 if rows.dtype == np.uint8 else like.dtype
        given = torch.from_numpy(np.ascontiguousarray(rows)).to(like.device, dtype)
        with self.evaluation():
            return [tensor.detach().float().cpu().numpy() for tensor in self(given)]


def encoder(function: Callable[[Tensor], Any]) -> Half:
    """x -> mean and log_var, or one tensor."""
    return Half(function, returned.latent)


def decoder(function: Callable[[Tensor], Any]) -> Half:
    """z -> x, or mean and width."""
    return Half(function, returned.decoded)


def in_words(error: BaseException) -> str:
    """What the owner's code raised, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:_MAX_WORDS]}"


def _modules(function: Callable[[Tensor], Any]) -> list[nn.Module]:
    """Those that a callable uses: itself, the object that it is a method of, the attributes of that
    object, and the variables of other functions that it reads."""
    if isinstance(function, nn.Module):
        return [function]
    owner = getattr(function, "__self__", None)
    if isinstance(owner, nn.Module):
        return [owner]
    values: list[Any] = list(vars(owner).values()) if hasattr(owner, "__dict__") else []
    if inspect.isfunction(function):
        variables = inspect.getclosurevars(function)
        values += [*variables.nonlocals.values(), *variables.globals.values()]
    return [value for value in values if isinstance(value, nn.Module)]
