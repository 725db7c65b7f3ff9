"""The nets between pixels and latents. They contain no probability.

An encoder maps float32 (rows, *shape) in [0, 1] to (rows, outputs[, height, width]). A decoder maps
(rows, *latent_shape) to unbounded float32 (rows, parameters, *shape). To add an architecture, write
a function like `mlp`, add it to `NETWORKS`, and add its name to Config.architecture's choices.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Final, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from latentd.training.config import Config
from latentd.training.errors import TrainingError

Shape = tuple[int, ...]


class Network(NamedTuple):
    """An architecture: how to build it, and its default sizes."""

    build: Callable[[Config, Shape, int, int], tuple[nn.Module, nn.Module]]
    hidden_size: int
    depth: int


def resolve_architecture(config: Config, shape: Shape) -> Config:
    """The config with architecture, hidden_size and depth resolved for rows of `shape`."""
    name, spatial = config.architecture, config.latents == "spatial"
    if name == "auto":
        large = len(shape) > 1 and min(shape[:2]) >= 28
        name = "conv" if large or spatial else "mlp"
    if name == "conv" and (len(shape) == 1 or min(shape[:2]) < 8):
        raise TrainingError(
            f"--architecture conv needs images of at least 8x8 pixels (height x width); rows here "
            f"have shape {shape}. Use --architecture mlp{' and --latents flat' * spatial}."
        )
    network = NETWORKS[name]
    depth = config.depth or network.depth
    if name == "conv" and min(shape[:2]) >> depth < 2:
        raise TrainingError(
            f"--depth {depth} halves images of shape {shape} below 2 pixels; use a smaller one."
        )
    if spatial and any(side % (1 << depth) for side in shape[:2]):
        raise TrainingError(
            f"--latents spatial with --depth {depth} needs images whose height and width are "
            f"multiples of {1 << depth}; rows here have shape {shape}. Use a smaller --depth, "
            "other rows (--image-size resizes images:DIR) or --latents flat."
        )
    hidden_size = config.hidden_size or network.hidden_size
    return dataclasses.replace(config, architecture=name, hidden_size=hidden_size, depth=depth)


def build(
    config: Config, shape: Shape, outputs: int, parameters: int
) -> tuple[nn.Module, nn.Module]:
    """The encoder and the decoder of a resolved config."""
    return NETWORKS[config.architecture].build(config, shape, outputs, parameters)


def latent_shape(config: Config, shape: Shape) -> Shape:
    """The shape of z for rows of `shape`, of a resolved config."""
    if config.latents == "flat":
        return (config.latent_size,)
    _, height, width = _levels(config, shape)[-1]
    return (config.latent_size, height, width)


def stride(config: Config) -> int | None:
    """Pixels of x to one of z, each way. None for flat latents, which fix the shape of x."""
    return 1 << _sizes(config)[1] if config.latents == "spatial" else None


def mlp(config: Config, shape: Shape, outputs: int, parameters: int) -> tuple[nn.Module, nn.Module]:
    """Fully connected layers over flattened rows."""
    return _dense(config, shape, outputs, parameters, _relu)


def iwae(
    config: Config, shape: Shape, outputs: int, parameters: int
) -> tuple[nn.Module, nn.Module]:
    """`mlp` with tanh: 784-200-200-50 in Burda, Grosse and Salakhutdinov (2016),
    arXiv:1509.00519."""
    return _dense(config, shape, outputs, parameters, _tanh)


def gated(
    config: Config, shape: Shape, outputs: int, parameters: int
) -> tuple[nn.Module, nn.Module]:
    """`mlp` with layers A(x) * sigmoid(B(x)): Tomczak and Welling (2018), arXiv:1705.07120."""
    return _dense(config, shape, outputs, parameters, _gate)


Layer = Callable[[int, int], list[nn.Module]]


def _relu(before: int, after: int) -> list[nn.Module]:
    return [nn.Linear(before, after), nn.ReLU()]


def _tanh(before: int, after: int) -> list[nn.Module]:
    return [nn.Linear(before, after), nn.Tanh()]


def _gate(before: int, after: int) -> list[nn.Module]:
    return [nn.Linear(before, 2 * after), nn.GLU(dim=1)]  # A and B in one product


def _dense(
    config: Config, shape: Shape, outputs: int, parameters: int, layer: Layer
) -> tuple[nn.Module, nn.Module]:
    hidden, depth = _sizes(config)
    widths = [hidden] * depth
    size = math.prod(shape)
    return (
        nn.Sequential(nn.Flatten(), *_layers([size, *widths, outputs], layer)),
        nn.Sequential(
            *_layers([config.latent_size, *widths, parameters * size], layer),
            nn.Unflatten(1, (parameters, *shape)),
        ),
    )


def _layers(widths: list[int], layer: Layer) -> list[nn.Module]:
    *inner, last = pairwise(widths)
    modules = [module for sizes in inner for module in layer(*sizes)]
    return [*modules, nn.Linear(*last)]  # outputs are unbounded


def conv(
    config: Config, shape: Shape, outputs: int, parameters: int
) -> tuple[nn.Module, nn.Module]:
    """Convolutions over images of any height and width. Channels come last, as in the data."""
    if config.latents == "spatial":
        return SpatialEncoder(config, shape, outputs), SpatialDecoder(config, shape, parameters)
    return ConvEncoder(config, shape, outputs), ConvDecoder(config, shape, parameters)


class ConvEncoder(nn.Module):
    """Strided convolutions, then one linear layer."""

    def __init__(self, config: Config, shape: Shape, outputs: int) -> None:
        super().__init__()
        levels = _levels(config, shape)
        self.features = nn.ModuleList(
            nn.Conv2d(fine.channels, coarse.channels, 3, stride=2, padding=1)
            for fine, coarse in pairwise(levels)
        )
        self.head = nn.Linear(math.prod(levels[-1]), outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = _channels_first(x)
        for convolution in self.features:
            h = convolution(h).relu()
        return self.head(h.flatten(1))  # type: ignore[no-any-return]


class ConvDecoder(nn.Module):
    """One linear layer, then sub-pixel convolutions (Shi et al., 2016, arXiv:1609.05158). Each
    makes four channels per output channel and arranges them as 2x2 pixels. Weights and arithmetic
    equal those of upsampling first. This measured three times as fast on ONNX Runtime's CPU
    provider (28x28, batches 1 to 256), because it never convolves the large images."""

    def __init__(self, config: Config, shape: Shape, parameters: int) -> None:
        super().__init__()
        colors = math.prod(shape[2:])
        levels = _levels(config, shape)
        levels[0] = levels[0]._replace(channels=parameters * colors)
        levels.reverse()
        self.stem = nn.Linear(config.latent_size, math.prod(levels[0]))
        self.features = nn.ModuleList(
            nn.Conv2d(coarse.channels, 4 * fine.channels, 3, padding=1)
            for coarse, fine in pairwise(levels)
        )
        self.levels = levels
        self.split = (parameters, colors) if len(shape) == 3 else (parameters,)

    def forward(self, z: Tensor) -> Tensor:
        h = self.stem(z).unflatten(1, self.levels[0])
        for convolution, (_, height, width) in zip(self.features, self.levels[1:], strict=True):
            h = F.pixel_shuffle(convolution(h.relu()), 2)[:, :, :height, :width]  # crop odd sizes
        return _channels_last(h, self.split)


class SpatialEncoder(nn.Module):
    """Convolutions alone: images of any size whose sides are multiples of 2^depth. Nothing is
    normalized over the image, so an output depends on bounded surroundings only."""

    def __init__(self, config: Config, shape: Shape, outputs: int) -> None:
        super().__init__()
        levels = _levels(config, shape)
        features = [
            module
            for fine, coarse in pairwise(levels)
            for module in (
                nn.Conv2d(fine.channels, coarse.channels, 3, stride=2, padding=1),
                Residual(coarse.channels),
            )
        ]
        head = nn.Conv2d(levels[-1].channels, outputs, 3, padding=1)
        self.layers = nn.Sequential(*features, head)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(_channels_first(x))  # type: ignore[no-any-return]


class SpatialDecoder(nn.Module):
    """The encoder's mirror image. It enlarges as ConvDecoder does."""

    def __init__(self, config: Config, shape: Shape, parameters: int) -> None:
        super().__init__()
        colors = math.prod(shape[2:])
        levels = _levels(config, shape)
        levels[0] = levels[0]._replace(channels=parameters * colors)
        levels.reverse()
        features = [
            module
            for coarse, fine in pairwise(levels)
            for module in (
                Residual(coarse.channels),
                nn.Conv2d(coarse.channels, 4 * fine.channels, 3, padding=1),
                nn.PixelShuffle(2),
            )
        ]
        stem = nn.Conv2d(config.latent_size, levels[0].channels, 3, padding=1)
        self.layers = nn.Sequential(stem, *features)
        self.split = (parameters, colors) if len(shape) == 3 else (parameters,)

    def forward(self, z: Tensor) -> Tensor:
        return _channels_last(self.layers(z), self.split)


class Residual(nn.Module):
    """h plus two convolutions of it (He et al., 2016, arXiv:1603.05027), without normalization."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(self.first(h.relu()).relu())  # type: ignore[no-any-return]


def _channels_first(x: Tensor) -> Tensor:
    """(rows, height, width[, colors]) -> (rows, colors, height, width)."""
    return x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2)


def _channels_last(h: Tensor, split: tuple[int, ...]) -> Tensor:
    """(rows, channels, height, width) -> (rows, parameters, height, width[, colors]).

    split: (parameters[, colors]), whose product is `channels`."""
    pixels = h.unflatten(1, split)  # type: ignore[no-untyped-call]
    return pixels.movedim(2, -1) if len(split) == 2 else pixels  # type: ignore[no-any-return]


class Level(NamedTuple):
    """One resolution of a convolutional net."""

    channels: int
    height: int
    width: int


def _levels(config: Config, shape: Shape) -> list[Level]:
    """The levels from the image to the coarsest. Each level halves height and width, rounded up.
    The coarsest has `hidden_size` channels, and each finer level has half as many."""
    hidden, depth = _sizes(config)
    height, width = shape[:2]
    levels = [Level(math.prod(shape[2:]), height, width)]
    for step in range(1, depth + 1):
        height, width = -(-height // 2), -(-width // 2)
        levels.append(Level(max(4, hidden >> (depth - step)), height, width))
    return levels


def _sizes(config: Config) -> tuple[int, int]:
    assert config.hidden_size is not None, "the config is not fitted"
    assert config.depth is not None, "the config is not fitted"
    return config.hidden_size, config.depth


NETWORKS: Final = {
    "mlp": Network(mlp, hidden_size=256, depth=2),
    "iwae": Network(iwae, hidden_size=200, depth=2),
    "gated": Network(gated, hidden_size=300, depth=2),
    "conv": Network(conv, hidden_size=64, depth=2),
}
