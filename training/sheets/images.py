"""The sheets of a run of images, as PNG: reconstructions, samples, interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from latentd.training.model import Model, decoded

_COLUMNS: Final = 12
_WIDE: Final = 1200  # approximate width in pixels: small images are enlarged to it
_GAP: Final = 2  # pixels between images, before enlarging


@torch.no_grad()
def draw(folder: Path, model: Model, x: Tensor, seed: int) -> list[Path]:
    """Write the three sheets. model: on the CPU. x: test rows (rows, *shape); only a few are used.
    Vectors become strips."""
    x = x[:_COLUMNS]
    mean, _ = model.encode(x)
    noise = torch.Generator().manual_seed(seed)
    z = torch.randn((8 * _COLUMNS, *model.latent_shape), generator=noise)
    steps = torch.linspace(0, 1, _COLUMNS).view(-1, *[1] * len(model.latent_shape))
    # A single row has no second row, so it is interpolated with itself.
    pairs = zip(mean[0::2], mean[1::2] if len(x) > 1 else mean, strict=False)
    return [
        grid(folder / "reconstructions.png", [x, decoded(model, mean)]),
        grid(folder / "samples.png", torch.split(decoded(model, z), _COLUMNS)),
        grid(
            folder / "interpolation.png",
            [decoded(model, torch.lerp(a, b, steps)) for a, b in pairs],
        ),
    ]


def grid(path: Path, lines: Sequence[Tensor]) -> Path:
    """Write a sheet with one line of images per tensor (images, *shape), uint8 or in [0, 1]."""
    tiles = [np.stack([_tile(row) for row in line.numpy()]) for line in lines]
    height, width, channels = tiles[0].shape[1:]
    columns = max(len(line) for line in tiles)
    sheet = np.full(
        (len(tiles) * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, channels),
        128,
        np.uint8,
    )
    for i, line in enumerate(tiles):
        for j, tile in enumerate(line):
            top, left = _GAP + i * (height + _GAP), _GAP + j * (width + _GAP)
            sheet[top : top + height, left : left + width] = tile
    larger = max(1, round(_WIDE / sheet.shape[1]))
    # Repetition is nearest-neighbor scaling, which keeps pixels sharp.
    sheet = sheet.repeat(larger, 0).repeat(larger, 1)
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(path)
    return path


def _tile(row: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """One row of data as (height, width, channels) bytes. A vector becomes a strip."""
    pixels = row if row.dtype == np.uint8 else np.round(row.clip(0, 1) * 255).astype(np.uint8)
    if pixels.ndim == 1:
        pixels = np.tile(pixels, (8, 1))
    return pixels.reshape(*pixels.shape[:2], -1)
