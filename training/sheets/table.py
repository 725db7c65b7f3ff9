"""The sheets of a run whose rows have columns: samples and reconstructions as CSV, and a picture of
the data beside the samples, column by column."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from latentd.columns import OTHER, Column
from latentd.tables import to_csv, to_values
from latentd.training.dataset import max_batch_rows
from latentd.training.likelihoods.mixed import MixedLikelihood
from latentd.training.model import Model, decoded

_RECONSTRUCTIONS: Final = 200
_SAMPLES: Final = 1000
_SHOWN: Final = 40  # columns in the picture
_ACROSS: Final = 5
_BARS: Final = 12  # levels of a categorical column, the commonest
_BINS: Final = 40
_RANGE: Final = (0.5, 99.5)  # percent of the data: one outlier would leave one bar


@torch.no_grad()
def draw(folder: Path, model: Model, x: Tensor, seed: int) -> list[Path]:
    """Write samples.csv, reconstructions.csv and columns.png. model: on the CPU. x: test rows."""
    columns = model.spec.columns
    mean, _ = model.encode(x[:_RECONSTRUCTIONS])
    rows = to_values(columns, x[:_RECONSTRUCTIONS].numpy())
    parts = torch.split(mean, max_batch_rows(model.output_shape, _RECONSTRUCTIONS))
    again = to_values(columns, torch.cat([decoded(model, part) for part in parts]).numpy())
    pairs = {
        key: values
        for name in rows
        for key, values in ((name, rows[name]), (f"{name} (reconstructed)", again[name]))
    }
    samples = to_values(columns, sampled(model, _SAMPLES, seed).numpy())
    _picture(folder / "columns.png", columns, to_values(columns, x.numpy()), samples)
    return [
        _write(folder / "samples.csv", samples),
        _write(folder / "reconstructions.csv", pairs),
        folder / "columns.png",
    ]


@torch.no_grad()
def sampled(model: Model, count: int, seed: int) -> Tensor:
    """Rows (count, columns) drawn from p(x|z) for z drawn from the prior. model: on the CPU."""
    noise = torch.Generator().manual_seed(seed)
    z = torch.randn((count, *model.latent_shape), generator=noise)
    assert isinstance(model.likelihood, MixedLikelihood)
    choices = torch.rand((count, len(model.spec.columns)), generator=noise)
    batch = max_batch_rows(model.output_shape, count)  # params may be 256 numbers of each column
    parts = zip(torch.split(z, batch), torch.split(choices, batch), strict=True)
    return torch.cat([model.likelihood.draw(model.decode(of_z), of_x) for of_z, of_x in parts])


def _write(path: Path, values: Mapping[str, Any]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(values)
        writer.writerows(to_csv(values))
    return path


def _picture(
    path: Path, columns: Sequence[Column], data: Mapping[str, Any], samples: Mapping[str, Any]
) -> None:
    from matplotlib.figure import Figure

    shown = columns[:_SHOWN]
    across = min(_ACROSS, len(shown))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(3.2 * across, 2.4 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).flatten()
    for axes, column in zip(grid, shown, strict=False):
        of_column = (data[column.name], samples[column.name])
        # A dollar sign would begin a formula.
        axes.set_title(column.name.replace("$", r"\$"), fontsize=9)
        axes.tick_params(labelsize=7)
        (_bars if column.is_categorical else _histogram)(axes, column, *of_column)
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    more = f" (the first {_SHOWN} of {len(columns)} columns)" if len(columns) > _SHOWN else ""
    figure.suptitle(f"test rows (filled) and samples (line){more}", fontsize=10)
    figure.savefig(path, dpi=90)


def _histogram(axes: Any, _: Column, data: Any, samples: Any) -> None:
    low, high = np.percentile(data.astype(np.float64), _RANGE)
    if not high > low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, _BINS + 1)
    # What lies outside is in the outermost bars.
    axes.hist(np.clip(data, low, high), edges, density=True, color="C0", alpha=0.45)
    axes.hist(np.clip(samples, low, high), edges, density=True, histtype="step", color="C3", lw=1.5)


def _bars(axes: Any, column: Column, data: Any, samples: Any) -> None:
    levels = sorted((*column.levels, OTHER), key=lambda level: -np.sum(data == level))[:_BARS]
    places = np.arange(len(levels))
    for values, shift, color, alpha in ((data, -0.2, "C0", 0.45), (samples, 0.2, "C3", 1.0)):
        shares = [np.mean(values == level) for level in levels]
        axes.bar(places + shift, shares, 0.4, color=color, alpha=alpha)
    labels = [level[:12].replace("$", r"\$") for level in levels]
    axes.set_xticks(places, labels, rotation=40, ha="right")
