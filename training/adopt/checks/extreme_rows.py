"""Rows at the extremes of what a model may get."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from latentd.shapes import Sizes
from latentd.training.adopt.checks.subject import Subject
from latentd.training.array import Array

SIGMAS: Final = 4.0


def inputs(subject: Subject, sizes: Sizes, count: int) -> Iterator[tuple[str, Array]]:
    """Black, white, noise and real rows, with what they are in words."""
    x = subject.manifest.at(sizes).x
    if math.isfinite(x.range[1] - x.range[0]):
        for name, end in zip(("black", "white"), x.range, strict=True):
            name = name if x.kind == "image" else f"x of {end:g}"
            yield name, np.full((1, *x.shape), end, x.dtype)
    yield "noise", subject.noise(sizes, count)
    yield "real rows", subject.rows(sizes, count)


def latents(
    subject: Subject, sizes: Sizes, count: int, means: Array
) -> Iterator[tuple[str, Array]]:
    """4 sigma of the prior; without one, of each channel of the encoded rows."""
    center, sigma = np.float32(0), np.float32(1)
    if subject.manifest.prior is None:
        axes = (0, *range(2, means.ndim))
        center, sigma = means.mean(axes, keepdims=True), means.std(axes, keepdims=True)
    shape = subject.manifest.at(sizes).z
    signs = np.sign(np.random.default_rng(0).standard_normal((count, *shape)))
    for name, factors in (("+4", np.ones(shape)[None]), ("-4", -np.ones(shape)[None])):
        yield f"z of {name} sigma", (center + SIGMAS * sigma * factors).astype(np.float32)
    mixed = (center + SIGMAS * sigma * signs).astype(np.float32)
    yield "z of +4 and -4 sigma by chance", mixed
