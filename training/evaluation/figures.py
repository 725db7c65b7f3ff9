"""The figures of an evaluation as PNG: the KL of each dimension, the latent space, samples."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from latentd.training import sheets
from latentd.training.evaluation import samples
from latentd.training.evaluation.loaded_run import LoadedRun

_POINTS: Final = 2000  # rows in the latent map
_BARS: Final = 100  # dimensions shown, in descending order of KL
_COLUMNS: Final = 12


def draw(folder: Path, loaded: LoadedRun, result: dict[str, Any]) -> list[Path]:
    """Write kl.png (not for an autoencoder), latent.png and samples.png into `folder`; of a model
    of text its sheets of text, and of rows with columns its tables, instead of samples.png."""
    if loaded.dataset.text or loaded.dataset.columns:
        model = copy.deepcopy(loaded.model).cpu()
        drawn = sheets.draw(folder, model, loaded.dataset.test.x, result["seed"])
    else:
        z = samples.prior(8 * _COLUMNS, result["latent"]["size"], result["seed"])
        images = torch.split(samples.decode(loaded.model, z), _COLUMNS)
        drawn = [sheets.images.grid(folder / "samples.png", images)]
    latent = folder / "latent.png"
    _latent(latent, loaded, result)
    if "kl" not in result["latent"]:
        return [latent, *drawn]
    kl = folder / "kl.png"
    _kl(kl, result["latent"])
    return [kl, latent, *drawn]


def _kl(path: Path, latent: dict[str, Any]) -> None:
    # The object interface needs neither a display nor pyplot's global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    kl, variance = np.array(latent["kl"]), np.array(latent["variance_of_mean"])
    order = np.argsort(-kl)[:_BARS]
    places = np.arange(len(order))
    active = variance[order] > latent["threshold"]
    for chosen, color, name in ((active, "C0", "active"), (~active, "C3", "not active")):
        if not chosen.any():
            continue
        axes.bar(places[chosen], kl[order][chosen], color=color, label=name)
    axes.set(
        title=f"{latent['active_units']} of {latent['size']} units active",
        xlabel="latent dimension, by KL",
        ylabel="KL, nats a row",
    )
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=100)


@torch.inference_mode()
def _latent(path: Path, loaded: LoadedRun, result: dict[str, Any]) -> None:
    """Plot one z per row: its coordinates against N(0, 1), |z| against N(0, I)'s, and a map."""
    from matplotlib.figure import Figure

    test = loaded.dataset.test
    x = test.x[: min(result["rows"], _POINTS)]
    mean, log_var = loaded.encode(loaded.targets(x, result["seed"]))
    z = mean + (0.5 * log_var).exp() * samples.prior(len(mean), mean.shape[1], result["seed"])
    normal = samples.prior(10 * _POINTS, mean.shape[1], result["seed"] + 1)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    values, norms, plane = figure.subplots(1, 3)
    for title, axes, ours, theirs in (
        ("all coordinates of z", values, z.flatten(), normal.flatten()),
        ("|z|", norms, z.norm(dim=1), normal.norm(dim=1)),
    ):
        edges = np.histogram_bin_edges(torch.cat((ours, theirs)).numpy(), 40).tolist()
        axes.hist(ours.numpy(), edges, density=True, label="q(z)")
        axes.hist(theirs.numpy(), edges, density=True, histtype="step", lw=2, label="N(0, I)")
        axes.set(title=title)
        axes.legend(loc="upper right")
    # The map shows the two directions in which the codes differ most.
    _, _, directions = torch.linalg.svd(mean - mean.mean(0), full_matrices=False)
    flat = (mean - mean.mean(0)) @ directions[:2].T
    colors = None if test.y is None else test.y[: len(x)].numpy()
    printable = plane.scatter(
        flat[:, 0], flat[:, -1], s=6, c=colors, cmap=None if test.y is None else "tab10"
    )
    if test.y is not None:
        figure.colorbar(printable, ax=plane)
    plane.set(title="E[z|x], its two widest directions", aspect="equal")
    figure.savefig(path, dpi=100)
