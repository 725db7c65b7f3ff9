"""One picture of many rows: images above their reconstructions, and heat maps of contributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from latentd import images
from latentd.codec import Array
from latentd.console.groups import Group, in_order

COLUMNS: Final = 16
"""Rows side by side."""


def render(
    found: Sequence[Group], lines: Sequence[Sequence[Array]], contributions: Sequence[Array]
) -> bytes:
    """Rows of images as a PNG: each line of images above the next, such as x above x'. The last
    line are heat maps of the contributions, if there are any.

    lines: of each line the images, group by group
    """
    pictures = [_in_order(found, line) for line in lines]
    if contributions:
        low, high = scale = images.heat_scale(contributions)
        heat = images.heat_maps(contributions, scale)
        pictures = [images.to_rgb(rows) for rows in pictures]
        pictures.append(_in_order(found, heat))
        print(f"Heat maps: from black, {low:.3g} nats a pixel, to yellow, {high:.3g} nats.")
    return images.make_grid(_interleave(pictures), columns=min(len(pictures[0]), COLUMNS))


def _interleave(pictures: Sequence[Array]) -> Array:
    """Up to COLUMNS rows of the first, below them the same rows of the others, and so on."""
    count, lines = len(pictures[0]), []
    for start in range(0, count, COLUMNS):
        for rows in (of_kind[start : start + COLUMNS] for of_kind in pictures):
            blank = min(COLUMNS, count) - len(rows)
            lines += [rows, np.full((blank, *rows.shape[1:]), 255, rows.dtype)]
    return np.concatenate(lines)


def _in_order(groups: Sequence[Group], parts: Sequence[Array]) -> Array:
    """Images, which are given group by group, in the order of the rows. If they have several sizes,
    white is added to the right and below."""
    height, width = (max(part.shape[axis] for part in parts) for axis in (1, 2))
    rows: Any = np.concatenate([_enlarged(part, height, width) for part in parts])
    return in_order(groups, rows)


def _enlarged(part: Array, height: int, width: int) -> Array:
    if part.shape[1:3] == (height, width):
        return part
    enlarged = np.full((len(part), height, width, *part.shape[3:]), 255, part.dtype)
    enlarged[:, : part.shape[1], : part.shape[2]] = part
    return enlarged
