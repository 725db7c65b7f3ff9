"""What a run draws at its end: curves.png, and the sheets of its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from latentd.training import sheets
from latentd.training.model import Model


def draw(folder: Path, model: Model, x: Tensor, history: list[dict[str, Any]], seed: int) -> None:
    """Write curves.png and the sheets. model: on the CPU. x: test rows (rows, *shape); only a few
    are used. history: the lines of the log, one an epoch."""
    _curves(folder / "curves.png", history)
    sheets.draw(folder, model, x, seed)


def _curves(path: Path, history: list[dict[str, Any]]) -> None:
    # The object interface needs neither a display nor pyplot's global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, term in zip(figure.subplots(1, 3), ("elbo", "distortion", "rate"), strict=True):
        for part in ("train", "validation"):
            key = f"{part}_{term}"
            lines = [line for line in history if key in line]  # not every epoch is validated
            axes.plot([line["epoch"] for line in lines], [line[key] for line in lines], label=part)
        axes.set(title=term, xlabel="epoch", ylabel="nats per example")
        axes.legend()
    figure.savefig(path, dpi=100)
