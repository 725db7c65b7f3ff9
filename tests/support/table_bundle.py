"""A bundle of a model of tables whose weights are drawn: numeric columns of unequal scales, and
two categorical ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from latentd import bundle
from latentd.bundle import Manifest, RowFormat, Threshold
from latentd.columns import Column
from latentd.shapes import Shape
from latentd.training import onnx_graphs
from latentd.training.config import Config
from latentd.training.dataset import RowSpec
from latentd.training.golden import golden_npz
from latentd.training.manifest import likelihood_format
from latentd.training.model import VAE, build
from latentd.training.networks import resolve_architecture

Floats = NDArray[np.float32]

LATENTS: Final = 3
COLUMNS: Final = (
    Column("pressure", mean=101_325.0, std=250.0, fill_value=101_325.0, is_integer=True),
    Column("color", levels=("blue", "green", "red"), fill_value=3.0),
    Column("leak", mean=2e-6, std=5e-7),
    Column("open", levels=("false", "true")),
)
X: Final[Floats] = np.array(
    [
        [101_325.0, 0, 2e-6, 1],
        [101_000.0, 2, 1e-6, 0],
        [99_000.0, 3, 9e-6, 2],  # beyond the training rows, and with values of no level
        [101_400.0, 1, 2.2e-6, 0],
    ],
    np.float32,
)


def table_model(columns: tuple[Column, ...] = COLUMNS) -> VAE:
    """The model, in PyTorch."""
    config = Config(data="table:no.csv", latent_size=LATENTS, hidden_size=12)
    spec = RowSpec((len(columns),), "float32", columns=columns)
    model = build(resolve_architecture(config, spec.shape, columns=True), spec).eval()
    assert isinstance(model, VAE)
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return model


def publish_table(
    root: Path,
    name: str = "table",
    columns: tuple[Column, ...] = COLUMNS,
    x: Floats = X,
    medians: Sequence[float] = (),
    threshold: Threshold | None = None,
) -> Path:
    """Publish it; returns the version's folder.

    x: rows of these columns; medians: of the columns' contributions; (): not in the manifest
    """
    model = table_model(columns)
    files = {
        bundle.ENCODER: onnx_graphs.encoder(model, name),
        bundle.DECODER: onnx_graphs.decoder(model, name),
        bundle.LIKELIHOOD: onnx_graphs.likelihood(model, name),
        bundle.GOLDEN: golden_npz(model, torch.from_numpy(np.resize(x, (8, len(columns))))),
    }
    scores: dict[str, Any] = {}
    if medians:
        scores = {"rows": 8, "levels": [0.0, 100.0], "median_contributions": list(medians)}
        scores |= {score: [-100.0, 100.0] for score in bundle.SCORES}
    manifest = Manifest(
        model=name,
        x=RowFormat("vector", Shape.parse([len(columns)]), "float32", columns=columns),
        z=bundle.LatentFormat(Shape.parse([LATENTS])),
        likelihood=likelihood_format(model, "gaussian", files[bundle.LIKELIHOOD]),
        opset=20,
        preprocessing="none",
        parity={},
        training_scores=scores,
        threshold=threshold,
    )
    return bundle.publish(root, manifest, files)
