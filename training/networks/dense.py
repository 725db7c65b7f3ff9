"""`mlp`, `iwae` and `gated`: fully connected layers over flattened rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from torch import nn

from latentd.training.config import Config

Halves = tuple[nn.Module, nn.Module]  # the encoder and the decoder
Layer = Callable[[int, int], list[nn.Module]]


def mlp(config: Config, shape: tuple[int, ...], posterior: int, outputs: int) -> Halves:
    """Linear layers and ReLU."""
    return _halves(config, shape, posterior, outputs, _relu)


def iwae(config: Config, shape: tuple[int, ...], posterior: int, outputs: int) -> Halves:
    """`mlp` with tanh: 784-200-200-50 in Burda, Grosse and Salakhutdinov (2016),
    arXiv:1509.00519."""
    return _halves(config, shape, posterior, outputs, _tanh)


def gated(config: Config, shape: tuple[int, ...], posterior: int, outputs: int) -> Halves:
    """`mlp` with layers A(x) * sigmoid(B(x)): Tomczak and Welling (2018), arXiv:1705.07120."""
    return _halves(config, shape, posterior, outputs, _gate)


def _relu(before: int, after: int) -> list[nn.Module]:
    return [nn.Linear(before, after), nn.ReLU()]


def _tanh(before: int, after: int) -> list[nn.Module]:
    return [nn.Linear(before, after), nn.Tanh()]


def _gate(before: int, after: int) -> list[nn.Module]:
    return [nn.Linear(before, 2 * after), nn.GLU(dim=1)]  # A and B in one product


def _halves(
    config: Config, shape: tuple[int, ...], posterior: int, outputs: int, layer: Layer
) -> Halves:
    hidden, depth = config.sizes
    widths = [hidden] * depth
    size = math.prod(shape)
    return (
        nn.Sequential(nn.Flatten(), *_layers([size, *widths, posterior], layer)),
        nn.Sequential(
            *_layers([config.latent_size, *widths, outputs * size], layer),
            nn.Unflatten(1, (outputs, *shape)),
        ),
    )


def _layers(widths: list[int], layer: Layer) -> list[nn.Module]:
    *inner, last = pairwise(widths)
    modules = [module for sizes in inner for module in layer(*sizes)]
    return [*modules, nn.Linear(*last)]  # outputs are unbounded
