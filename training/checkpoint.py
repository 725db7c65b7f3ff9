"""A run between two steps, in one file: everything that decides what comes after."""

from __future__ import annotations

import dataclasses
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

from training.config import Config
from training.data import RowSpec
from training.errors import TrainingError
from training.model import Model, build

FORMAT: Final = "latentd checkpoint 1"


@dataclass(frozen=True)
class Checkpoint:
    """Plain data and tensors only, so that loading one runs no code."""

    config: Config  # fitted: net, hidden and depth decided
    spec: RowSpec
    weights: dict[str, Tensor]  # what is validated and exported
    optimiser: dict[str, Any]
    generators: dict[str, Tensor]  # torch.Generator states: noise now, order as the epoch began
    history: list[dict[str, Any]]  # the log's line for each epoch so far
    split: dict[str, Any]  # Dataset.summary()
    trained: dict[str, Tensor] | None = None  # what the optimiser moves, if `weights` average it
    epoch: dict[str, Any] = dataclasses.field(default_factory=dict)  # the one begun: Run.checkpoint

    def model(self) -> Model:
        """The model with these weights, on the CPU and in evaluation mode."""
        model = build(self.config, self.spec)
        model.load_state_dict(self.weights)
        return model.eval()


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write `path` whole or not at all: a crash leaves the old file, never half a new one.

    Raises OSError naming `path` where it cannot be written."""
    beside = path.with_name(f".{path.name}.writing")
    try:
        with beside.open("wb") as file:
            write(file, checkpoint)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, RuntimeError) as error:
        # torch closes its archive also after a write that failed, and then tells of the closing.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, KeyboardInterrupt):
            raise cause from None
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from None
    finally:
        beside.unlink(missing_ok=True)


def write(file: BinaryIO, checkpoint: Checkpoint) -> None:
    """The bytes `load` reads."""
    fields = dataclasses.fields(checkpoint)
    raw = {field.name: getattr(checkpoint, field.name) for field in fields}
    raw |= {
        "format": FORMAT,
        "config": dataclasses.asdict(checkpoint.config),
        "spec": dataclasses.asdict(checkpoint.spec),
    }
    torch.save(raw, file)


def load(path: Path) -> Checkpoint:
    """Read `path` onto the CPU. Raises TrainingError for a file that is missing, damaged, or not
    written by `save`."""
    if not path.is_file():
        raise TrainingError(
            f"{path} does not exist; `train` writes best.pt and last.pt into --out."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # the bytes of a foreign file can make the unpickler raise anything
        raise TrainingError(
            f"{path} is damaged or was not written by latentd; train again, or use another one."
        ) from None
    if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
        raise TrainingError(f"{path} was not written by this release of latentd; train again.")
    try:
        spec = RowSpec(tuple(raw["spec"]["shape"]), raw["spec"]["dtype"])
        checkpoint = Checkpoint(
            **{**raw, "config": Config.from_dict(raw["config"]), "spec": spec},
        )
        checkpoint.model()  # the weights fit the config
    except (KeyError, TypeError, RuntimeError, AttributeError, TrainingError) as error:
        raise TrainingError(
            f"{path} does not fit together ({str(error).splitlines()[0]}); train again."
        ) from None
    return checkpoint
