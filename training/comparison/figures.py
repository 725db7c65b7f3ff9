"""The report's pictures: labeled sheets of images from the first seed's runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from latentd.training.comparison import interpolation
from latentd.training.comparison.hypothesis import MODELS
from latentd.training.comparison.trained_runs import TrainedRuns
from latentd.training.evaluation import samples
from latentd.training.evaluation.linear_probe import ROWS
from latentd.training.model import to_unit

_SIDE: Final = 8  # images along each side of a square of samples
_STEPS: Final = 11  # images in an interpolation
_SEED: Final = 0


def draw(runs: TrainedRuns, folder: Path) -> None:
    """Write the pictures into `folder`. Images give one_x_many_z, samples and interpolation. Any
    data gives latent."""
    folder.mkdir(parents=True, exist_ok=True)
    _latent(runs, folder / "latent.png")
    if runs.dataset.spec.kind != "image":
        return
    _one_x_many_z(runs, folder / "one_x_many_z.png")
    _samples(runs, folder / "samples.png")
    if runs.classifier is not None:
        _interpolation(runs, folder / "interpolation.png")


def _figure(width: float, height: float) -> Any:
    # The object interface needs neither a display nor pyplot's global state.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _show(axes: Any, title: str, lines: list[Tensor]) -> None:
    """Show one line of images for each tensor (images, *shape), with grey lines between images."""
    tiles = [[_framed(image) for image in to_unit(line)] for line in lines]
    sheet = torch.cat([torch.cat(line, dim=1) for line in tiles])
    axes.imshow(sheet.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.axis("off")


def _framed(image: Tensor) -> Tensor:
    """Add a grey line to the right and below: (height + 1, width + 1[, channels])."""
    height, width = image.shape[:2]
    framed = torch.full((height + 1, width + 1, *image.shape[2:]), 0.5)
    framed[:height, :width] = image
    return framed


def _one_x_many_z(runs: TrainedRuns, path: Path) -> None:
    figure = _figure(10, 3.1)
    x = runs.dataset.test.x[:6]
    for axes, (model, run) in zip(figure.subplots(1, 2), MODELS.items(), strict=True):
        loaded = runs.open(run, _SEED)
        mean, log_var = loaded.encode(loaded.targets(x, _SEED))
        noise = samples.prior(_STEPS - 1, mean.shape[1], _SEED)
        lines = []
        for row, m, v in zip(x, mean, log_var, strict=True):
            drawn = samples.decode(loaded.model, m + (0.5 * v).exp() * noise)
            lines.append(torch.cat((row[None], drawn)))
        _show(axes, f"{model}: x, then decodes of draws from q(z|x)", lines)
    figure.savefig(path, dpi=80)


def _samples(runs: TrainedRuns, path: Path) -> None:
    figure = _figure(12, 4.4)
    pictures: list[tuple[str, Tensor]] = []
    for model, run in MODELS.items():
        loaded = runs.open(run, _SEED)
        z = samples.prior(_SIDE**2, math.prod(loaded.model.latent_shape), _SEED)
        pictures.append((f"{model}, z from N(0, I)", samples.decode(loaded.model, z)))
    codes, _ = loaded.encode(loaded.targets(runs.dataset.train.x[:ROWS], _SEED))
    z = samples.fitted(codes, _SIDE**2, _SEED)
    pictures.append((f"{model}, z from a fitted Gaussian", samples.decode(loaded.model, z)))
    for axes, (title, x) in zip(figure.subplots(1, 3), pictures, strict=True):
        _show(axes, title, list(torch.split(x, _SIDE)))
    figure.savefig(path, dpi=80)


def _interpolation(runs: TrainedRuns, path: Path) -> None:
    figure = _figure(13, 2.8)
    x, other = interpolation.pairs(runs, 6, _SEED)
    steps = torch.linspace(0, 1, _STEPS)
    plots = figure.subplots(1, 3)
    for axes, (model, run) in zip(plots, MODELS.items(), strict=False):
        loaded = runs.open(run, _SEED)
        codes, _ = loaded.encode(loaded.targets(torch.cat((x, other)), _SEED))
        lines = [
            samples.decode(loaded.model, torch.lerp(a, b, steps[:, None]))
            for a, b in zip(codes[: len(x)], codes[len(x) :], strict=True)
        ]
        _show(axes, f"{model}: between two codes", lines)
    mixed = [
        torch.stack([torch.lerp(a, b, float(step)) for step in steps])
        for a, b in zip(to_unit(x), to_unit(other), strict=True)
    ]
    _show(plots[2], "mixing the pixels", mixed)
    figure.savefig(path, dpi=80)


def _latent(runs: TrainedRuns, path: Path) -> None:
    """Plot draws of z on the two coordinates with the largest variance, and N(0, I)'s circles."""
    figure = _figure(10, 4.6)
    test = runs.dataset.test
    x, y = test.x[:2000], test.y
    for axes, (model, run) in zip(figure.subplots(1, 2), MODELS.items(), strict=True):
        loaded = runs.open(run, _SEED)
        mean, log_var = loaded.encode(loaded.targets(x, _SEED))
        z = mean + (0.5 * log_var).exp() * samples.prior(len(mean), mean.shape[1], _SEED)
        first, second = mean.var(0).argsort(descending=True)[[0, -1 if z.shape[1] == 1 else 1]]
        labels = {} if y is None else {"c": y[: len(x)].numpy(), "cmap": "tab10"}
        axes.scatter(z[:, first], z[:, second], s=5, **labels)
        turn = np.linspace(0, 2 * np.pi, 200)
        for radius in (1, 2, 3):
            axes.plot(radius * np.cos(turn), radius * np.sin(turn), color="black", lw=0.8)
        axes.set(title=f"{model}: z and N(0, I)'s circles at 1, 2, 3", aspect="equal")
    figure.savefig(path, dpi=80)
