"""The input of an evaluation: a checkpoint's weights, and rows in the form its objective uses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from latentd.training import checkpoint, data, likelihoods
from latentd.training.checkpoint import Checkpoint
from latentd.training.config import Config
from latentd.training.dataset import Dataset, max_batch_rows
from latentd.training.device import resolve_device
from latentd.training.errors import TrainingError
from latentd.training.evaluation.results_file import weights_digest
from latentd.training.model import Model
from latentd.training.readers.picture_cache import PictureCache
from latentd.training.train import BEST

_ENCODED: Final = 1024  # maximum rows per batch: bounds memory, changes no result


class Meaning(NamedTuple):
    """The meaning of -log p(x|z): the quantity it is the logarithm of."""

    kind: str  # probability | density | nothing
    description: str


@dataclass(frozen=True)
class LoadedRun:
    """A checkpoint, its model in evaluation mode on `device`, and the rows to evaluate it on."""

    path: Path
    saved: Checkpoint
    source: str  # the source of the rows, in --data's notation
    model: Model
    dataset: Dataset  # on the CPU
    device: torch.device
    weights: str  # sha256 of the weights

    @property
    def own_data(self) -> bool:
        """Whether the rows and their split are those that the model was trained on."""
        return bool(self.dataset.digest == self.saved.split["digest"])

    @property
    def values(self) -> str:
        """What the evaluated rows hold, in words."""
        config = self.saved.config
        if config.is_text:
            return "bytes of UTF-8, each text's end included"
        if self.dataset.columns:
            return "columns as the data has them, in their own units"
        if config.binarization == "dynamic":
            return "black or white, drawn once here with probability x; in training, in each pass"
        if config.binarization == "fixed":
            return f"black or white, drawn once for all with seed {config.binarization_seed}"
        return "as the data has them, scaled to [0, 1]"

    def targets(self, x: Tensor, seed: int) -> Tensor:
        """Rows (rows, *shape) in the objective's form, on `device`: float32 in [0, 1], or the bytes
        of texts. If the model was trained on black and white, pixels are drawn once with
        probability x."""
        noise = torch.Generator().manual_seed(seed)
        return self.model.target(x, noise).to(self.device)

    def grey(self) -> Dataset:
        """The same rows and split before fixed binarization. The classifier is trained on these
        rows, and E[x|z] looks like them."""
        if self.saved.config.binarization != "fixed":
            return self.dataset
        config = self.saved.config.with_data(self.source)
        return data.load(dataclasses.replace(config, binarization="none"))

    @torch.inference_mode()
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mean, log_var: float32 (rows, latents) on the CPU, for target rows."""
        batches = torch.split(x, max_batch_rows(x.shape[1:], _ENCODED))
        parts = [self.model.encode(batch.to(self.device)) for batch in batches]
        columns = (torch.cat(column) for column in zip(*parts, strict=True))
        mean, log_var = (column.flatten(1).cpu() for column in columns)
        return mean, log_var

    def meaning(self) -> Meaning:
        """The meaning of this model's -log p(x|z)."""
        if self.dataset.columns and self.saved.config.model == "vae":
            return Meaning(
                "density",
                "density in the units of the columns' numbers, times the probability of the "
                "levels: it may be below 0",
            )
        return meaning(self.saved.config, self.dataset.test.x)


def open_run(path: Path, source: str | None = None, device: str = "auto") -> LoadedRun:
    """Open a checkpoint, or a run's folder (its best.pt), with the rows it was trained on.

    source: other rows, in --data's notation. Raises TrainingError if there is no checkpoint, if the
    rows do not fit it, or if its own data has changed.
    """
    if path.is_dir():
        path = path / BEST
    saved = checkpoint.load(path)
    dataset = _dataset(path, saved, source)
    chosen = resolve_device(device)
    model = saved.model().to(chosen)
    name = source or saved.config.data
    return LoadedRun(path, saved, name, model, dataset, chosen, weights_digest(model))


def meaning(config: Config, x: Tensor) -> Meaning:
    """The meaning of this config's -log p(x|z) for rows x."""
    if config.model == "ae":
        return Meaning("nothing", "an autoencoder has no ELBO and no likelihood")
    if likelihoods.of(config).density:
        return Meaning(
            "density", "density of pixels scaled to [0, 1]: no probability, so it may be below 0"
        )
    if config.likelihood == "bernoulli" and config.binarization == "none" and not _two_valued(x):
        return Meaning(
            "nothing",
            "the cross-entropy of grey pixels is not a likelihood, so there is no ELBO and no NLL; "
            "train with --binarization dynamic to have them",
        )
    if config.is_text:
        return Meaning("probability", "probability of the texts' bytes")
    return Meaning("probability", "probability of the pixels")


def _two_valued(x: Tensor) -> bool:
    highest = 255 if x.dtype == torch.uint8 else 1
    return bool(((x == 0) | (x == highest)).all())


def _dataset(path: Path, saved: Checkpoint, source: str | None) -> Dataset:
    config = saved.config if source is None else saved.config.with_data(source)
    run = PictureCache.beside(path) if source is None else None
    try:
        dataset = data.load(config, run, saved.spec.columns)
    except TrainingError as error:
        raise TrainingError(f"{error} Rows to evaluate on can be named with --data.") from None
    if dataset.spec != saved.spec:
        raise TrainingError(
            f"--data {config.data} has {dataset.spec}; this checkpoint was trained on {saved.spec}."
        )
    if source is None and dataset.digest != saved.split["digest"]:
        raise TrainingError(
            f"{config.data} has changed since this checkpoint was trained: its test rows may have "
            "been trained on. Restore it, or pass other rows with --data and report that you did."
        )
    return dataset
