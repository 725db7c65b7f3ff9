"""Finds and calls the function that makes an owner's model: package.module:factory."""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final

from latentd.training.errors import TrainingError

_EXPECTED: Final = re.compile(r"[\w.]+:[\w.]+")


def make(name: str) -> Any:
    """What `package.module:factory` returns. Modules of the current folder can be imported. Raises
    TrainingError."""
    if not _EXPECTED.fullmatch(name):
        raise TrainingError(
            f"--model {name}: expected package.module:factory, a function without arguments."
        )
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does
    place, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise TrainingError(
                f"--model {name}: {place} needs the package {error.name}, which is not installed."
            ) from None
        raise TrainingError(
            f"--model {name}: there is no module {error.name}, neither in the current folder nor "
            "among the installed packages."
        ) from None
    for part in path.split("."):
        if not hasattr(found, part):
            raise TrainingError(f"--model {name}: {place} has no {path}.")
        found = getattr(found, part)
    if not callable(found):
        raise TrainingError(
            f"--model {name}: it is of type {type(found).__name__}; expected a function that "
            "returns the model."
        )
    model = _call(found, name)
    for method in ("encode", "decode"):
        if not callable(getattr(model, method, None)):
            raise TrainingError(
                f"--model {name}: it returns {type(model).__name__} without {method}; expected "
                "an object with encode(x) and decode(z)."
            )
    return model


def _call(function: Callable[[], Any], name: str) -> Any:
    try:
        return function()
    except TrainingError:
        raise
    except Exception as error:  # of the owner's code
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise TrainingError(
            f"--model {name}: it fails with {type(error).__name__}: {error} ({last.filename}, line "
            f"{last.lineno})."
        ) from error
