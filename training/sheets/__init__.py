"""Sheets of a model's rows, one module for each kind of rows: reconstructions, samples and more."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from latentd.training.model import Model
from latentd.training.sheets import images, table, text


def draw(folder: Path, model: Model, x: Tensor, seed: int) -> list[Path]:
    """Write the sheets of the model's kind of rows: PNGs, .txt files or .csv files.

    model: on the CPU. x: test rows (rows, *shape); only a few are used. Returns the files.
    """
    if model.spec.text:
        return text.draw(folder, model, x, seed)
    if model.spec.columns:
        return table.draw(folder, model, x, seed)
    return images.draw(folder, model, x, seed)
