"""A bundle of a model of text whose weights are drawn: its decisions differ from row to row."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch

from latentd import bundle
from latentd.bundle import LatentFormat, Likelihood, Manifest, RowFormat
from latentd.shapes import Shape
from latentd.texts import to_rows
from latentd.training.config import Config
from latentd.training.dataset import RowSpec
from latentd.training.model import VAE, build
from latentd.training.networks import resolve_architecture
from latentd.training.text import export as text_export

LENGTH: Final = 8
LATENTS: Final = 3
TEXTS: Final = ["", "a", "bc", "abcdefg", "é", "zzz zz"]
X: Final = to_rows([text.encode() for text in TEXTS], LENGTH)


def text_model() -> VAE:
    """The model, in PyTorch."""
    config = Config(data="text:no.txt", latent_size=LATENTS, hidden_size=12)
    spec = RowSpec((LENGTH,), "uint8", text=True)
    model = build(resolve_architecture(config, spec.shape), spec).eval()
    assert isinstance(model, VAE)
    for parameter in model.parameters():
        parameter.data.mul_(4)
    return model


def publish_text(root: Path, name: str = "text") -> Path:
    """Publish it; returns the version's folder."""
    files = text_export.files(text_model(), name, torch.from_numpy(np.resize(X, (32, LENGTH))))
    manifest = Manifest(
        model=name,
        x=RowFormat("text", Shape.parse([LENGTH]), "uint8", (0.0, 255.0)),
        z=LatentFormat(Shape.parse([LATENTS])),
        likelihood=Likelihood("categorical", ()),
        opset=20,
        preprocessing="none",
        parity={},
    )
    return bundle.publish(root, manifest, files)
