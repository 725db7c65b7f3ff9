"""The nets between pixels and latents. They contain no probability.

An encoder maps float32 (rows, *shape) in [0, 1] to (rows, posterior[, height, width]): the
means and log-variances of q(z|x). A decoder maps (rows, *latent_shape) to unbounded float32
(rows, outputs, *shape), with `outputs` numbers for each element of x. `gru` is for text: its
encoder takes bytes, and its decoder also takes the text, to predict each byte from those before
it. To add an architecture, write a function like `dense.mlp`, add it to `NETWORKS`, and add its
name to Config.architecture's choices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final, NamedTuple

from torch import nn

from latentd.training.config import Config
from latentd.training.errors import TrainingError
from latentd.training.networks import dense, gru, resnet
from latentd.training.settings import CONVOLUTIONAL

Shape = tuple[int, ...]

_COARSEST: Final = 4  # pixels: flat latents are computed from an image of at least this side
_CHANNELS: Final = (16, 256)  # the default width at the finest level, and the widest default


class Network(NamedTuple):
    """An architecture: how to build it, and its default sizes. None: they follow the rows."""

    build: Callable[[Config, Shape, int, int], tuple[nn.Module, nn.Module]]
    hidden_size: int | None = None
    depth: int | None = None
    stochastic_layers: int = 1


NETWORKS: Final = {
    "mlp": Network(dense.mlp, hidden_size=256, depth=2),
    "iwae": Network(dense.iwae, hidden_size=200, depth=2),
    "gated": Network(dense.gated, hidden_size=300, depth=2),
    "resnet": Network(resnet.build),
    "ladder": Network(resnet.build, stochastic_layers=2),
    "gru": Network(gru.build, hidden_size=256, depth=1),
}


def resolve_architecture(config: Config, shape: Shape, columns: bool = False) -> Config:
    """The config with everything that follows the rows' `shape` resolved: architecture,
    hidden_size, depth, stochastic_layers, linear_path and std. columns: whether rows have units of
    their own."""
    name, spatial = config.architecture, config.latents == "spatial"
    if name == "auto":
        large = len(shape) > 1 and min(shape[:2]) >= 28
        name = "gru" if config.is_text else "resnet" if large or spatial else "mlp"
    network = NETWORKS[name]
    layers = config.stochastic_layers or network.stochastic_layers
    depth = config.depth or network.depth
    hidden_size = config.hidden_size or network.hidden_size
    linear_path, std = config.linear_path, config.std
    if name in CONVOLUTIONAL:
        if len(shape) == 1 or min(shape[:2]) < 8:
            raise TrainingError(
                f"--architecture {name} needs images of at least 8x8 pixels (height x width); rows "
                f"here have shape {shape}. Use --architecture mlp"
                f"{' and --latents flat' * spatial}."
            )
        depth = depth or _default_depth(config, shape, layers)
        low, high = _CHANNELS
        hidden_size = hidden_size or min(high, low << (depth - 1))
        _check_sizes(config, shape, depth, layers)
    if linear_path == "auto":
        possible = name in CONVOLUTIONAL and not spatial and config.likelihood != "bernoulli"
        linear_path = "pca" if possible else "none"
    if std == "auto" and config.likelihood == "gaussian":
        shared = name in CONVOLUTIONAL and config.fixed_std is None
        std = "shared" if shared else "column" if columns else "pixel"
    if std == "column" and not columns:
        raise TrainingError(
            "--std column is for rows in units of their own, and these are scaled to 0..1 already; "
            "use shared or pixel."
        )
    return dataclasses.replace(
        config,
        architecture=name,
        hidden_size=hidden_size,
        depth=depth,
        stochastic_layers=layers,
        linear_path=linear_path,
        std=std,
    )


def _default_depth(config: Config, shape: Shape, layers: int) -> int:
    """Halvings until flat latents see _COARSEST pixels or more; two for spatial latents."""
    if config.latents == "spatial":
        return max(2, layers)
    # ceil(side / 2^depth) >= _COARSEST, for the largest depth
    return max(1, layers, ((min(shape[:2]) - 1) // (_COARSEST - 1)).bit_length() - 1)


def _check_sizes(config: Config, shape: Shape, depth: int, layers: int) -> None:
    spatial, size = config.latents == "spatial", config.latent_size
    if min(shape[:2]) >> depth < 2:
        raise TrainingError(
            f"--depth {depth} halves images of shape {shape} below 2 pixels; use a smaller one."
        )
    if spatial and any(side % (1 << depth) for side in shape[:2]):
        raise TrainingError(
            f"--latents spatial with --depth {depth} needs images whose height and width are "
            f"multiples of {1 << depth}; rows here have shape {shape}. Use a smaller --depth, "
            "other rows (--image-size resizes images:DIR) or --latents flat."
        )
    if layers > depth:
        raise TrainingError(
            f"--stochastic-layers {layers} needs as many levels, and --depth is {depth}."
        )
    if size % (multiple := _latent_multiple(spatial, layers)):
        raise TrainingError(
            f"--latent-size {size}: with --stochastic-layers {layers} and --latents "
            f"{config.latents} it must be a multiple of {multiple}."
        )


def _latent_multiple(spatial: bool, layers: int) -> int:
    """Equal parts of z; a spatial one has four times as many channels as its finer image."""
    return layers << (2 * (layers - 1)) if spatial else layers


def latent_multiple(config: Config) -> int:
    """What latent_size must be a multiple of, of a resolved config."""
    return _latent_multiple(config.latents == "spatial", config.layers)


def build(
    config: Config, shape: Shape, posterior: int, outputs: int
) -> tuple[nn.Module, nn.Module]:
    """The encoder and the decoder of a resolved config."""
    return NETWORKS[config.architecture].build(config, shape, posterior, outputs)


def latent_shape(config: Config, shape: Shape) -> Shape:
    """The shape of z for rows of `shape`, of a resolved config."""
    if config.latents == "flat":
        return (config.latent_size,)
    _, height, width = resnet.levels(config, shape)[-1]
    return (config.latent_size, height, width)


def stride(config: Config) -> int | None:
    """Pixels of x to one of z, each way. None for flat latents, which fix the shape of x."""
    return 1 << config.sizes[1] if config.latents == "spatial" else None
