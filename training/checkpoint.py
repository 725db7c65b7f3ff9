"""A run's state between two steps, in one file: everything that the next steps depend on."""

from __future__ import annotations

import dataclasses
import os
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

from latentd.training.config import Config
from latentd.training.dataset import RowSpec
from latentd.training.errors import TrainingError
from latentd.training.files import open_plain, printable, require_memory
from latentd.training.model import Model, build

FORMAT: Final = "latentd checkpoint 1"


@dataclass(frozen=True)
class Checkpoint:
    """Contains only plain data and tensors, so loading a checkpoint runs no code."""

    config: Config  # resolved: architecture, hidden_size, depth
    spec: RowSpec
    weights: dict[str, Tensor]  # the weights to validate and export
    optimizer: dict[str, Any]
    generators: dict[str, Tensor]  # torch.Generator states: noise now, order at the epoch's start
    history: list[dict[str, Any]]  # the log line of each finished epoch
    split: dict[str, Any]  # Dataset.summary()
    raw_weights: dict[str, Tensor] | None = None  # the optimizer's, if `weights` is an EMA
    epoch: dict[str, Any] = dataclasses.field(default_factory=dict)  # in progress

    def model(self) -> Model:
        """The model with these weights, on the CPU and in evaluation mode."""
        model = build(self.config, self.spec)
        model.load_state_dict(self.weights)
        return model.eval()


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write `path` atomically: a crash leaves the old file, never a partial new one.

    Raises OSError that names `path` if it cannot be written."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with temporary.open("wb") as file:
            write(file, checkpoint)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        # After a failed write, torch still closes its archive and reports only the failed close.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, KeyboardInterrupt):
            raise cause from None
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def write(file: BinaryIO, checkpoint: Checkpoint) -> None:
    """Write the bytes that `load` reads."""
    fields = dataclasses.fields(checkpoint)
    document = {field.name: getattr(checkpoint, field.name) for field in fields}
    document |= {
        "format": FORMAT,
        "config": dataclasses.asdict(checkpoint.config),
        "spec": dataclasses.asdict(checkpoint.spec),
    }
    torch.save(document, file)


def load(path: Path) -> Checkpoint:
    """Read `path` onto the CPU. Raises TrainingError if the file is missing, damaged or not written
    by `save`, or if its tensors need more memory than its bytes account for."""
    if path.is_dir():
        raise TrainingError(f"{printable(path)} is a folder. Name its best.pt or last.pt.")
    document = _read(path)
    if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
        raise TrainingError(
            f"{printable(path)} was not written by this release of latentd; train again."
        )
    try:
        spec = RowSpec.from_dict(document["spec"])
        checkpoint = Checkpoint(
            **{**document, "config": Config.from_dict(document["config"]), "spec": spec},
        )
        _check_shapes(checkpoint)
        checkpoint.model()  # checks that the weights fit the config
    except Exception as error:  # a foreign file can hold any settings and tensors
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise TrainingError(
            f"{printable(path)} is not a checkpoint of this version of latentd: {why.rstrip('.')}. "
            "Train again, or use the version that wrote it."
        ) from None
    return checkpoint


def _read(path: Path) -> Any:
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            require_memory(printable(path), _archive_bytes(file), "Use a machine with more memory.")
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                document = torch.load(file, map_location="cpu", weights_only=True)
        # A tensor with a stride of 0 can have any size and needs no bytes until it is copied.
        if sum(t.numel() * t.element_size() for t in _tensors(document)) > size:
            raise ValueError("tensors of more bytes than the file")
    except FileNotFoundError:
        raise TrainingError(
            f"{printable(path)} does not exist; `train` writes best.pt and last.pt into --out."
        ) from None
    except TrainingError:
        raise
    except OSError as error:
        raise TrainingError(
            f"{printable(path)} cannot be read: {error.strerror or error}."
        ) from None
    except Exception:  # a foreign file can make the unpickler raise anything
        raise TrainingError(
            f"{printable(path)} is damaged or was not written by latentd. Train again, or use "
            "another file."
        ) from None
    return document


def _archive_bytes(file: BinaryIO) -> int:
    """The bytes in torch's archive, which torch does not compress. Raises ValueError for a
    compressed member, which could expand to any size."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("compressed")
    return sum(entry.file_size for entry in entries)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in plain data."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _check_shapes(checkpoint: Checkpoint) -> None:
    """Raise ValueError unless the weights' shapes fit the config. Runs before any allocation,
    because a file of a few bytes may ask for a net of any size."""
    with torch.device("meta"):
        net = build(checkpoint.config, checkpoint.spec)
    wanted = {name: tensor.shape for name, tensor in net.state_dict().items()}
    for part in (checkpoint.weights, checkpoint.raw_weights):
        if part is not None and {name: tensor.shape for name, tensor in part.items()} != wanted:
            raise ValueError("the weights are not of the net that its settings describe")
