"""Loads files of weights into an owner's model. No code of a file is run."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from latentd.training.adopt import onnx_file
from latentd.training.errors import AdmissionError, TrainingError

_INNER: Final = ("state_dict", "model_state_dict")
"""The keys under which checkpoints have the state dict."""
_GLOBAL: Final = re.compile(r"GLOBAL ([\w.]+)|Unsupported \w+: (\S+)")
_SHOWN: Final = 5  # keys in a message


def load(model: Any, files: Sequence[str], report: Callable[[str], None]) -> dict[str, Any]:
    """Load each file; returns their digests by name. Raises TrainingError.

    files: FILE, for the whole model, or PART=FILE, for its attribute PART
    """
    digests = {}
    for given in files:
        part, _, name = given.rpartition("=")
        path, target = Path(name), _part(model, part)
        try:
            digests[path.name] = onnx_file.digest(path.read_bytes())
        except OSError as error:
            raise TrainingError(f"--weights {path} cannot be read: {error.strerror}.") from None
        _fill(target, _read(path), path, part or type(model).__name__, report)
    return digests


def _part(model: Any, part: str) -> nn.Module:
    target = model
    for name in part.split(".") if part else ():
        target = getattr(target, name, None)
    if not isinstance(target, nn.Module):
        what = f"its {part}" if part else "what the factory returns"
        raise TrainingError(
            f"--weights needs a torch.nn.Module, but {what} is a {type(target).__name__}. Load the "
            "weights in the factory, or name a part that is a module: --weights PART=FILE."
        )
    return target


def _read(path: Path) -> Mapping[str, Any]:
    """The file's tensors by name, and whatever else it has."""
    if path.suffix == ".safetensors":
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise TrainingError(f"--weights {path} is not a safetensors file: {error}.") from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        names = _GLOBAL.search(str(error))
        what = f", {next(filter(None, names.groups()))}" if names else ""
        raise AdmissionError(
            f"--weights {path} would run code when it is read{what}, so it was not read; expected "
            "a state dict, which holds tensors only. Where you trust the file, load it there and "
            "save torch.save(model.state_dict(), ...), or a safetensors file."
        ) from None
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise TrainingError(f"--weights {path} is not a file of torch.save: {error}.") from None
    if not isinstance(found, Mapping):
        raise TrainingError(
            f"--weights {path} has a {type(found).__name__}; expected a state dict, names and "
            "their tensors."
        )
    return found


def _fill(
    target: nn.Module,
    found: Mapping[str, Any],
    path: Path,
    name: str,
    report: Callable[[str], None],
) -> None:
    words = []
    for key in _INNER:
        if isinstance(found.get(key), Mapping):
            found = found[key]
            words.append(f"from its {key}")
            break
    expected = target.state_dict()
    prefix = _prefix(found, expected)
    given = {key[len(prefix) :]: value for key, value in found.items() if key.startswith(prefix)}
    if prefix:
        words.append(f"without the prefix {prefix!r}")
    if others := [key for key in found if not key.startswith(prefix)]:
        words.append(f"without {len(others)} other keys, {_some(others)}")
    _require_same_keys(given, expected, path, name)
    for key, tensor in expected.items():
        value = given[key]
        if not isinstance(value, Tensor) or value.shape != tensor.shape:
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TrainingError(
                f"--weights {path}: {key} is {shape}; {name} has {list(tensor.shape)}. Does the "
                "factory make the model with the settings that it was trained with?"
            )
    target.load_state_dict(given)
    report(", ".join([f"weights: {len(given)} tensors of {path} into {name}", *words]))


def _prefix(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """What begins the names of all tensors of the module in the file; "": nothing, or not all are
    there."""
    if not expected or expected.keys() <= found.keys():
        return ""
    first = next(iter(expected))
    prefixes = [key.removesuffix(first) for key in found if key.endswith(f".{first}")]
    return next((p for p in prefixes if all(p + key in found for key in expected)), "")


def _require_same_keys(
    given: Mapping[str, Any], expected: Mapping[str, Any], path: Path, name: str
) -> None:
    missing = [key for key in expected if key not in given]
    unexpected = [key for key in given if key not in expected]
    found = [
        f"{len(keys)} {how}: {_some(keys)}"
        for how, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if found:
        raise TrainingError(
            f"--weights {path} does not fit {name}: {'; '.join(found)}. Give the file of this "
            "model, or a factory that makes the model of this file; --weights PART=FILE loads a "
            "part."
        )


def _some(keys: Sequence[str]) -> str:
    more = ", ..." if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
