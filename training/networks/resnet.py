"""`resnet` and `ladder`: residual convolutions between images and latents.

The encoder halves the image `depth` times. The decoder is its mirror image. Nothing is normalized:
a decoder serves faster without, and with spatial latents an output depends on bounded surroundings
only. A ladder's latents enter the decoder at several levels: z is their concatenation, the coarsest
first, and p(z) is still N(0, I), because what a finer part means may depend on the coarser ones.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentd.training.config import Config

Shape = tuple[int, ...]
Layer = TypeVar("Layer", bound=nn.Module)


LEAK: Final = 0.1  # the slope of an activation below 0


class Level(NamedTuple):
    """One resolution of the net, in pixels."""

    channels: int
    height: int
    width: int


def levels(config: Config, shape: Shape) -> list[Level]:
    """The levels from the finest, at half the image's resolution, to the coarsest. Each halves
    height and width, rounded up. The coarsest has `hidden_size` channels, each finer half as
    many."""
    hidden, depth = config.sizes
    height, width = shape[:2]
    found = []
    for step in range(1, depth + 1):
        height, width = -(-height // 2), -(-width // 2)
        found.append(Level(max(4, hidden >> (depth - step)), height, width))
    return found


def build(
    config: Config, shape: Shape, posterior: int, outputs: int
) -> tuple[nn.Module, nn.Module]:
    """The encoder and the decoder of images of `shape`."""
    return Encoder(config, shape, posterior), Decoder(config, shape, outputs)


class Encoder(nn.Module):
    """(rows, *shape) -> (rows, posterior[, height, width]): means, then log-variances.

    Each part of z is computed at the level where it enters the decoder."""

    def __init__(self, config: Config, shape: Shape, posterior: int) -> None:
        super().__init__()
        scales, layers = levels(config, shape), config.layers
        self.stem = nn.Conv2d(math.prod(shape[2:]), scales[0].channels, 5, stride=2, padding=2)
        self.halvings = nn.ModuleList(
            nn.Conv2d(fine.channels, coarse.channels, 3, stride=2, padding=1)
            for fine, coarse in pairwise(scales)
        )
        self.blocks = nn.ModuleList(blocks(config, level, scales) for level in scales)
        size = posterior // layers
        self.heads = nn.ModuleList(
            _ToSpatial(level, size, part)
            if config.latents == "spatial"
            else nn.Sequential(nn.Flatten(), *_dense(math.prod(level), level, size))
            for part, level in enumerate(scales[: -layers - 1 : -1])
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks[0](self.stem(channels_first(x)))
        features = [h]
        for halving, layers in zip(self.halvings, list(self.blocks)[1:], strict=True):
            h = layers(halving(activate(h)))
            features.insert(0, h)
        parts = [head(activate(h)) for head, h in zip(self.heads, features, strict=False)]
        halves = [part.chunk(2, dim=1) for part in parts]
        return torch.cat([mean for mean, _ in halves] + [log_var for _, log_var in halves], dim=1)

    def silence(self) -> None:
        """Make the outputs 0, until training changes them."""
        for head in self.heads:
            _scale(head[-1] if isinstance(head, nn.Sequential) else head, 0)


class Decoder(nn.Module):
    """(rows, *latent_shape) -> (rows, outputs, *shape)."""

    def __init__(self, config: Config, shape: Shape, outputs: int) -> None:
        super().__init__()
        self.scales = levels(config, shape)[::-1]
        self.size = config.latent_size // config.layers  # of each part of z
        coarse = self.scales[: config.layers]
        self.entries = nn.ModuleList(
            _FromSpatial(level, self.size, part)
            if config.latents == "spatial"
            else nn.Sequential(*_dense(self.size, level, math.prod(level)), nn.Unflatten(1, level))
            for part, level in enumerate(coarse)
        )
        self.blocks = nn.ModuleList(
            blocks(config, level, self.scales[::-1]) for level in self.scales
        )
        self.doublings = nn.ModuleList(
            Doubling(coarse.channels, fine.channels) for coarse, fine in pairwise(self.scales)
        )
        colors = math.prod(shape[2:])
        self.last = Doubling(self.scales[-1].channels, outputs * colors)
        self.shape = shape
        self.split = (outputs, colors) if len(shape) == 3 else (outputs,)
        self.spatial = config.latents == "spatial"

    def forward(self, z: Tensor) -> Tensor:
        first, *rest = torch.split(z, self.size, dim=1)
        h = self.blocks[0](self.entries[0](first))
        entries = [*zip(list(self.entries)[1:], rest, strict=True)]
        for number, (doubling, layers) in enumerate(
            zip(self.doublings, list(self.blocks)[1:], strict=True)
        ):
            h = self._cropped(doubling(activate(h)), self.scales[number + 1][1:])
            if number < len(entries):
                entry, part = entries[number]
                h = h + entry(part)
            h = layers(h)
        return channels_last(self._cropped(self.last(activate(h)), self.shape[:2]), self.split)

    def silence(self) -> None:
        """Make the outputs 0, until training changes them."""
        _scale(self.last, 0)

    def _cropped(self, h: Tensor, size: Shape) -> Tensor:
        """Without the row and the column that doubling adds to an odd side."""
        return h if self.spatial else h[:, :, : size[0], : size[1]]


def _dense(before: int, level: Level, after: int) -> list[nn.Module]:
    """Two dense layers between a flat z and features of a level, twice as wide as these.

    The hidden one costs little, and lets all positions act together: convolutions reach only their
    neighbors."""
    hidden = 2 * level.channels
    return [nn.Linear(before, hidden), nn.LeakyReLU(LEAK), nn.Linear(hidden, after)]


class _ToSpatial(nn.Module):
    """A part of z from features of its level, (rows, size, height, width) of the coarsest level."""

    def __init__(self, level: Level, size: int, part: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(level.channels, size >> (2 * part), 3, padding=1)
        self.scale = 1 << part

    def forward(self, h: Tensor) -> Tensor:
        h = self.convolution(h)
        if self.scale == 1:
            return h
        # Means and log-variances apart: each keeps its channels together.
        return torch.cat([F.pixel_unshuffle(half, self.scale) for half in h.chunk(2, 1)], dim=1)


class _FromSpatial(nn.Module):
    """The inverse of `_ToSpatial`: features of a level from its part of z."""

    def __init__(self, level: Level, size: int, part: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(size >> (2 * part), level.channels, 3, padding=1)
        self.scale = 1 << part

    def forward(self, z: Tensor) -> Tensor:
        return self.convolution(F.pixel_shuffle(z, self.scale))  # type: ignore[no-any-return]


def blocks(config: Config, level: Level, scales: list[Level]) -> nn.Sequential:
    """The residual blocks of a level, one fewer at the finest, and the coarsest's attention."""
    count = config.blocks - (level == scales[0] and len(scales) > 1)  # the finest costs the most
    found: list[nn.Module] = [Residual(level.channels) for _ in range(count)]
    if config.attention and level == scales[-1]:
        found.append(Attention(level.channels))
    return nn.Sequential(*found)


def activate(h: Tensor) -> Tensor:
    """Leaky: after a step that is too long, a ReLU can be 0 for all inputs, and learns no more."""
    return F.leaky_relu(h, LEAK)


class Residual(nn.Module):
    """h plus two convolutions of it (He et al., 2016, arXiv:1603.05027). It begins near the
    identity, in place of normalization (as in Zhang et al., 2019, arXiv:1901.09321)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = _scale(nn.Conv2d(channels, channels, 3, padding=1), 0.1)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(activate(self.first(activate(h))))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """h plus what each position reads from all others (Vaswani et al., 2017, arXiv:1706.03762), one
    head. It begins near the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.projections = nn.Linear(channels, 3 * channels)
        self.output = _scale(nn.Linear(channels, channels), 0.1)

    def forward(self, h: Tensor) -> Tensor:
        positions = h.flatten(2).transpose(1, 2)
        query, key, value = self.projections(self.norm(positions)).chunk(3, dim=2)
        weights = (query @ key.transpose(1, 2) / query.shape[2] ** 0.5).softmax(dim=2)
        read = self.output(weights @ value)
        return h + read.transpose(1, 2).reshape(h.shape)  # type: ignore[no-any-return]


class Doubling(nn.Module):
    """Nearest-neighbor upsampling by two, then a 5x5 convolution, computed as a sub-pixel
    convolution (Shi et al., 2016, arXiv:1609.05158): four 3x3 kernels make the 2x2 pixels of each
    position, and large images are never convolved. The kernels are sums of the 5x5 one's weights,
    so equal inputs give four equal pixels, where free kernels leave a grid (Odena et al., 2016,
    https://distill.pub/2016/deconv-checkerboard)."""

    taps: Tensor

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        full = nn.Conv2d(before, after, 5)
        assert full.bias is not None
        self.weight, self.bias = full.weight, full.bias
        # taps[pixel, position, weight]: which weights of an axis fall on which of its positions.
        first = ((1, 1, 0, 0, 0), (0, 0, 1, 1, 0), (0, 0, 0, 0, 1))
        second = ((1, 0, 0, 0, 0), (0, 1, 1, 0, 0), (0, 0, 0, 1, 1))
        self.register_buffer("taps", torch.tensor((first, second)).float(), persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        return F.pixel_shuffle(F.conv2d(h, *self._kernels(), padding=1), 2)

    def plain(self) -> nn.Module:
        """The same with kernels that are computed once, to serve."""
        weight, bias = (part.detach() for part in self._kernels())
        convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        convolution.load_state_dict({"weight": weight, "bias": bias})
        return nn.Sequential(convolution, nn.PixelShuffle(2))

    def _kernels(self) -> tuple[Tensor, Tensor]:
        """Of a 3x3 convolution with four channels for each of ours, and their biases."""
        kernels = torch.einsum("ayk,bxl,oikl->oabiyx", self.taps, self.taps, self.weight)
        return kernels.flatten(0, 2), self.bias.repeat_interleave(4)


@torch.no_grad()
def _scale(layer: Layer, factor: float) -> Layer:
    """The layer with its weights and biases multiplied by `factor`."""
    for weights in layer.parameters():
        weights.mul_(factor)
    return layer


def channels_first(x: Tensor) -> Tensor:
    """(rows, height, width[, colors]) -> (rows, colors, height, width)."""
    return x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2)


def channels_last(h: Tensor, split: tuple[int, ...]) -> Tensor:
    """(rows, channels, height, width) -> (rows, outputs, height, width[, colors]).

    split: (outputs[, colors]), whose product is `channels`."""
    pixels = h.unflatten(1, split)  # type: ignore[no-untyped-call]
    return pixels.movedim(2, -1) if len(split) == 2 else pixels  # type: ignore[no-any-return]
