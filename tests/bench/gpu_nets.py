"""The nets that are measured on a GPU: as PyTorch modules, and as bundles of the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor

from latentd import bundle
from latentd.bundle import DataSpec, LatentFormat, Manifest, RowFormat
from latentd.shapes import Shape
from latentd.training import graph_checks, networks, onnx_graphs
from latentd.training.config import Config
from latentd.training.dataset import RowSpec
from latentd.training.fp16 import to_half
from latentd.training.golden import golden_npz
from latentd.training.manifest import likelihood_format
from latentd.training.model import Model, build


@dataclass(frozen=True)
class Net:
    """A convolutional VAE for images of one shape; random weights cost what trained ones do."""

    name: str
    shape: tuple[int, ...]
    hidden_size: int  # channels at the coarsest level
    depth: int
    latent_size: int

    @property
    def config(self) -> Config:
        config = Config(
            architecture="resnet",
            likelihood="bernoulli",
            hidden_size=self.hidden_size,
            depth=self.depth,
            latent_size=self.latent_size,
        )
        return networks.resolve_architecture(config, self.shape)


SMALL = Net("small", (28, 28), hidden_size=64, depth=2, latent_size=20)
LARGE = (
    Net("large-64", (64, 64, 3), hidden_size=512, depth=4, latent_size=128),
    Net("large-128", (128, 128, 3), hidden_size=512, depth=4, latent_size=128),
)


def model(net: Net) -> Model:
    """In evaluation mode, on the CPU."""
    return build(net.config, RowSpec(net.shape, "uint8")).eval()


def publish(net: Net, root: Path, precision: str) -> Path:
    """The same model as a bundle under `root`; the version's folder."""
    whole = model(net)
    exported = to_half(whole) if precision == "float16" else whole
    rows = torch.randint(0, 256, (8, *net.shape), dtype=torch.uint8)
    encoder = onnx_graphs.encoder(exported, net.name)
    likelihood = onnx_graphs.likelihood(whole, net.name)
    manifest = Manifest(
        model=net.name,
        x=RowFormat.of(DataSpec("image", net.shape, "uint8", (0.0, 255.0))),
        z=LatentFormat(Shape.parse([net.latent_size])),
        likelihood=likelihood_format(whole, "bernoulli", likelihood),
        opset=graph_checks.opset(onnx.load_from_string(encoder)),
        preprocessing="inside the graphs",
        parity={},
        precision=precision,
    )
    files = {
        bundle.ENCODER: encoder,
        bundle.DECODER: onnx_graphs.decoder(exported, net.name),
        bundle.LIKELIHOOD: likelihood,
        bundle.GOLDEN: golden_npz(whole, rows),
    }
    return bundle.publish(root, manifest, files)


def latents(rows: int, net: Net) -> Tensor:
    return torch.randn(rows, net.latent_size, generator=torch.Generator().manual_seed(0))
