"""The sheets of a run of text, one text a line: reconstructions, samples, interpolation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from latentd.texts import one_line, to_texts
from latentd.training.model import Model, decoded

_RECONSTRUCTIONS: Final = 24
_SAMPLES: Final = 48
_INTERPOLATIONS: Final = 6
_STEPS: Final = 8


@torch.no_grad()
def draw(folder: Path, model: Model, x: Tensor, seed: int) -> list[Path]:
    """Write the three sheets. model: on the CPU. x: test rows; only a few are used."""
    mean, _ = model.encode(x[:_RECONSTRUCTIONS])
    again = to_texts(decoded(model, mean))
    noise = torch.Generator().manual_seed(seed)
    z = torch.randn((_SAMPLES, *model.latent_shape), generator=noise)
    pairs = zip(to_texts(x), again, strict=False)
    return [
        _write(folder / "reconstructions.txt", (f"{a}\t{b}" for a, b in pairs)),
        _write(folder / "samples.txt", to_texts(decoded(model, z))),
        _write(folder / "interpolation.txt", _separated(interpolations(model, mean))),
    ]


@torch.no_grad()
def interpolations(model: Model, mean: Tensor) -> list[list[str]]:
    """The texts decoded on straight lines between pairs of codes: the first and the second, the
    third and the fourth, and so on. mean: the codes (rows, latents)."""
    mean = mean.to(next(model.parameters()).device)
    steps = torch.linspace(0, 1, _STEPS, device=mean.device)[:, None]
    # A single row has no second row, so it is interpolated with itself.
    pairs = zip(mean[0::2], mean[1::2] if len(mean) > 1 else mean, strict=False)
    return [
        to_texts(decoded(model, torch.lerp(a, b, steps)).cpu())
        for a, b in list(pairs)[:_INTERPOLATIONS]
    ]


def _separated(groups: Iterable[list[str]]) -> Iterable[str]:
    """The lines of all groups, with an empty line between groups."""
    for number, lines in enumerate(groups):
        if number:
            yield ""
        yield from lines


def _write(path: Path, lines: Iterable[str]) -> Path:
    path.write_text("".join(f"{one_line(line)}\n" for line in lines))
    return path
