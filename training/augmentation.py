"""Changes pictures at random in each pass: flips, crops and colors. Only training rows change."""

from __future__ import annotations

import torch
from torch import Tensor

from latentd.training.config import Config
from latentd.training.errors import TrainingError


def check(config: Config, shape: tuple[int, ...]) -> None:
    """Raise TrainingError if rows of this shape cannot be changed as the config says."""
    flags = {
        "--augment-flip": config.augment_flip,
        "--augment-crop": config.augment_crop,
        "--augment-color": config.augment_color,
    }
    given = [flag for flag, value in flags.items() if value]
    if given and len(shape) == 1:
        raise TrainingError(
            f"{given[0]} changes pictures, and {config.data} has vectors of {shape[0]} values. "
            "Leave it out."
        )
    if config.augment_crop and config.augment_crop >= min(shape[:2]):
        raise TrainingError(
            f"--augment-crop {config.augment_crop} is as large as the pictures, {shape[0]}x"
            f"{shape[1]}; use a smaller one."
        )


def augment(x: Tensor, config: Config, generator: torch.Generator) -> Tensor:
    """Rows (rows, height, width[, colors]) of bytes or of floats in [0, 1], changed; dtype and
    shape stay. Without any flag, x itself, and nothing is drawn."""
    if config.augment_flip:
        x = _flip(x, generator)
    if config.augment_crop:
        x = _crop(x, config.augment_crop, generator)
    if config.augment_color:
        x = _color(x, config.augment_color, generator)
    return x


def _uniform(x: Tensor, generator: torch.Generator) -> Tensor:
    """One number in [0, 1) for each row, in a shape that spreads over x."""
    drawn = torch.rand(len(x), generator=generator, device=x.device)
    return drawn.reshape(-1, *[1] * (x.ndim - 1))


def _flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the rows, left to right."""
    return torch.where(_uniform(x, generator) < 0.5, x.flip(2), x)


def _crop(x: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Move each row by up to `pixels` each way. What comes in is reflected at the edge."""
    rows = torch.arange(len(x), device=x.device)
    places = []
    for length in x.shape[1:3]:
        moved = torch.randint(
            -pixels, pixels + 1, (len(x), 1), generator=generator, device=x.device
        )
        place = (torch.arange(length, device=x.device) + moved).abs()
        last = length - 1
        places.append(last - (last - place).abs())
    height, width = places
    return x[rows[:, None, None], height[:, :, None], width[:, None, :]]


def _color(x: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and saturation, each by a factor in 1 - amount to 1 + amount."""
    highest = 255 if x.dtype == torch.uint8 else 1
    y = x.float() / highest

    def factor() -> Tensor:
        return 1 + amount * (2 * _uniform(x, generator) - 1)

    y = y * factor()
    mean = y.flatten(1).mean(1).reshape(-1, *[1] * (x.ndim - 1))
    y = mean + (y - mean) * factor()
    if x.ndim == 4 and x.shape[3] == 3:
        grey = y.mean(3, keepdim=True)
        y = grey + (y - grey) * factor()
    y = highest * y.clamp(0, 1)
    return (y.round() if x.dtype == torch.uint8 else y).to(x.dtype)
