"""Finds where an owner's code makes Python values of its data: a trace keeps those of its example.

The code runs as it is, not traced. There lengths are plain integers, so that only data is found.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from latentd.training.adopt.modules.halves import Half
from latentd.training.errors import AdmissionError

_NUMBERS: Final = ("__bool__", "__complex__", "__float__", "__index__", "__int__")
_QUESTIONS: Final = ("__contains__", "allclose", "equal", "is_nonzero")
_TO_PYTHON: Final = {*_NUMBERS, *_QUESTIONS, "__array__", "item", "numpy", "tolist"}
"""The functions of torch that give something else than tensors."""
_TORCH: Final = Path(torch.__file__).parent


def require_none(what: str, half: Half, rows: Tensor) -> None:
    """Raise AdmissionError if a Python value comes from the rows' values.

    what: the half, in messages
    """
    with half.evaluation(), _Watch(what) as watch:
        given = rows.clone()
        watch.mark(given)
        half(given)


class _Watch(TorchFunctionMode):
    """Follows the tensors that are computed from a marked one."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what
        self._kept: dict[int, Tensor] = {}  # kept, so that no other tensor gets the same id

    def mark(self, value: Any) -> None:
        """Follow what is computed from these tensors too."""
        self._kept |= {id(tensor): tensor for tensor in _tensors(value)}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """See TorchFunctionMode."""
        given = (args, kwargs or {})
        marked = any(id(tensor) in self._kept for tensor in _tensors(given))
        if marked and getattr(func, "__name__", "") in _TO_PYTHON:
            raise AdmissionError(
                f"{self._what} branches or computes in Python on values of its rows, {_place()}: "
                "a graph would do for all rows what this one example needs. Write it with tensors, "
                "torch.where instead of if, and leave out checks of values; or export the model "
                "yourself and adopt the two graphs with --onnx."
            )
        result = func(*args, **(kwargs or {}))
        if marked:
            self.mark(result)
            if getattr(func, "__name__", "") in ("__setitem__", "__set__"):
                self.mark(args[0])
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def _place() -> str:
    """The innermost line of code that is neither torch's nor this file's."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        path = frame.f_code.co_filename
        if path != __file__ and _TORCH not in Path(path).parents:
            break
        frame = frame.f_back
    path, line = frame.f_code.co_filename, frame.f_lineno
    code = linecache.getline(path, line).strip()
    return f"in {Path(path).name}, line {line}" + (f" ({code})" if code else "")
