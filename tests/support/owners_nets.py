"""A model in PyTorch as its owner has it, its card, and its adoption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentd.training.adopt import adopt

SIZE = {"min": 32, "max": 128, "default": 64}
CARD: dict[str, Any] = {
    "range": [-1, 1],
    "scale": 2.0,
    "shift": 0.5,
    "prior": "none",
    "license": "MIT",
    "source": "a test",
    "posterior": "point",
    "sizes": {"h": SIZE, "w": SIZE},
}


class Blocks(nn.Module):
    """Means of blocks of pixels, and back: it reconstructs pictures roughly."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 4, 4, bias=False)
        self.up = nn.ConvTranspose2d(4, 3, 4, 4, bias=False)
        for layer, value in ((self.down, 1 / 16), (self.up, 1.0)):
            nn.init.zeros_(layer.weight)
            with torch.no_grad():
                for color in range(3):
                    layer.weight[color, color] = value

    def encode(self, x: Tensor) -> Any:
        return self.down(x)

    def decode(self, z: Tensor) -> Any:
        return self.up(z)


def published(source: Any, root: Path, card: dict[str, Any] = CARD) -> tuple[Path, list[str]]:
    lines: list[str] = []
    folder = adopt(source, card, root / "models", "adopted", report=lines.append)
    return folder, lines
