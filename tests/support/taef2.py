"""TAEF2, a published autoencoder, as its user would write it: a module that takes its weights.

Encoder and decoder are one `Sequential` each, and so are the names of the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Taef2(nn.Module):
    """RGB from 0 to 1, NCHW -> latents of 32 channels and an eighth of each side -> RGB."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            _conv(3, 64),
            _Block(),
            *(_down(), _Block(), _Block(), _Block()),
            *(_down(), _Block(), _Block(), _Block()),
            *(_down(), _PoolBlock(), _PoolBlock(), _PoolBlock()),
            _conv(64, 32),
        )
        self.decoder = nn.Sequential(
            _Limit(),
            _conv(32, 64),
            nn.ReLU(),
            *(_PoolBlock(), _PoolBlock(), _PoolBlock(), nn.Upsample(scale_factor=2), _plain()),
            *(_Block(), _Block(), _Block(), nn.Upsample(scale_factor=2), _plain()),
            *(_Block(), _Block(), _Block(), nn.Upsample(scale_factor=2), _plain()),
            _Block(),
            _conv(64, 3),
        )

    def encode(self, x: Tensor) -> Tensor:
        latents: Tensor = self.encoder(x)
        return latents

    def decode(self, z: Tensor) -> Tensor:
        x: Tensor = self.decoder(z)
        return x


def _conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _plain() -> nn.Module:
    return nn.Conv2d(64, 64, 3, padding=1, bias=False)


def _down() -> nn.Module:
    return nn.Conv2d(64, 64, 3, padding=1, stride=2, bias=False)


class _Limit(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return 3 * torch.tanh(z / 3)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(_conv(64, 64), nn.ReLU(), _conv(64, 64), nn.ReLU(), _conv(64, 64))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


class _PoolBlock(_Block):
    def __init__(self) -> None:
        super().__init__()
        narrow, wide = nn.Conv2d(64, 256, 1, bias=False), nn.Conv2d(256, 64, 1, bias=False)
        self.pool = nn.Sequential(narrow, nn.GroupNorm(4, 256), nn.ReLU(), wide)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.pool(x))
