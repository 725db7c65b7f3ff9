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
_PART: Final = re.compile(r"\w+(\.\w+)*")
_GLOBAL: Final = re.compile(r"GLOBAL ([\w.]+)")
_SHOWN: Final = 5  # keys in a message


def load(model: Any, files: Sequence[str], report: Callable[[str], None]) -> dict[str, Any]:
    """Load each file; returns their digests by name. Raises TrainingError.

    files: FILE, for the whole model, or PART=FILE, for its attribute PART
    """
    digests = {}
    for given in files:
        try:
            part, path = _split(given)
            digest = onnx_file.digest(path.read_bytes())
        except OSError as error:
            raise TrainingError(f"--weights {given} cannot be read: {error.strerror}.") from None
        target = _part(model, part)
        digests[f"{part}={path.name}" if part else path.name] = digest
        _fill(target, _read(path), path, part or type(model).__name__, report)
    return digests


def _split(given: str) -> tuple[str, Path]:
    """PART and FILE. Names of files may have "=", as Lightning's do: epoch=3-step=100.ckpt."""
    part, equals, name = given.partition("=")
    if not equals or not _PART.fullmatch(part) or Path(given).is_file():
        return "", Path(given)
    return part, Path(name)


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
        except Exception as error:  # a foreign file can make it raise anything
            raise _no_file_of(path, "safetensors", error) from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file can make it raise anything
        names = _GLOBAL.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if names is None:
            raise _no_file_of(path, "torch.save", error) from None
        raise AdmissionError(
            f"--weights {path} would run code when it is read, {names[1]}, so it was not read; "
            "expected a state dict, which holds tensors only. Where you trust the file, load it "
            "there and save torch.save(model.state_dict(), ...), or a safetensors file."
        ) from None
    if not isinstance(found, Mapping):
        raise TrainingError(
            f"--weights {path} has a {type(found).__name__}; expected a state dict, names and "
            "their tensors."
        )
    return found


def _no_file_of(path: Path, what: str, error: Exception) -> TrainingError:
    reason = type(error).__name__
    if not isinstance(error, pickle.UnpicklingError):  # its message is PyTorch's advice to callers
        sentence = str(error).partition("\n")[0].partition(". ")[0]
        reason = f"{reason}: {sentence}" if sentence else reason
    return TrainingError(
        f"--weights {path} is not a file of {what}, or it is damaged ({reason}). Give a state dict "
        "that torch.save wrote, or a safetensors file."
    )


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
    for key in found:
        if not isinstance(key, str):
            raise TrainingError(
                f"--weights {path} has the key {key!r}; expected a state dict, whose keys are the "
                "names of tensors."
            )
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
        _require_numbers(value, tensor.dtype, f"--weights {path}: {key}", name)
    casts = {(v.dtype, expected[k].dtype) for k, v in given.items() if v.dtype != expected[k].dtype}
    words += sorted(f"{_name(old)} as {_name(new)}" for old, new in casts)
    target.load_state_dict(given)
    report(", ".join([f"weights: {len(given)} tensors of {path} into {name}", *words]))


def _require_numbers(value: Tensor, dtype: torch.dtype, key: str, name: str) -> None:
    """Raise TrainingError for values that a tensor of this type cannot take as they are."""
    if value.layout != torch.strided or value.is_meta:
        what = "has no values" if value.is_meta else "is sparse"
        raise TrainingError(f"{key} {what}; expected a dense tensor. Save it as one.")
    if _kind(value.dtype) != _kind(dtype):
        raise TrainingError(
            f"{key} is {_name(value.dtype)}; {name} has {_name(dtype)}. Quantized weights need "
            "their scales: save them as the floats that they stand for."
        )


def _kind(dtype: torch.dtype) -> str:
    """Types of one kind hold each other's numbers, but for rounding."""
    if dtype.is_complex:
        return "complex"
    if not dtype.is_floating_point:
        return "integer"
    return "float" if dtype.itemsize > 1 else "float8"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
