"""A map of training rows as a picture: a dot for each row, and what its color means."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from latentd.client.results import LatentMap
from latentd.codec import Array

_SIDE: Final = 960  # pixels of the square with the dots
_LEGEND: Final = 240  # pixels beside it
_MARGIN: Final = 24
_SMOOTH: Final = 2  # times larger when drawn, then reduced: edges become smooth
_MOST_NAMES: Final = 40  # of labels in the legend
_TABLEAU: Final = (
    *("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f"),
    *("#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#bab0ac"),
)
"""Colors that people tell apart: Tableau's ten."""
_LOW, _HIGH = (42, 72, 120), (250, 170, 40)  # the ends of a scale, blue to yellow

Color = tuple[int, int, int]


def draw(found: LatentMap) -> bytes:
    """A PNG. Rows are colored by label; without labels by reconstruction error, from its 1st to its
    99th percentile; without either they have one color."""
    if found.label is not None:
        palette = _palette(len(found.classes))
        colors = [palette[label] for label in found.label.tolist()]
        legend = list(zip(palette, found.classes, strict=True))
    elif found.reconstruction_error is not None:
        low, high = np.percentile(found.reconstruction_error, (1, 99)).tolist()
        parts = ((found.reconstruction_error - low) / ((high - low) or 1)).clip(0, 1)
        colors = [_between(part) for part in parts.tolist()]
        steps = [(_between(part / 4), low + (high - low) * part / 4) for part in range(5)]
        legend = [(color, f"{nats:.4g} nats") for color, nats in steps]
    else:
        colors, legend = [_LOW] * len(found), []
    picture = Image.new("RGB", (_SIDE + _LEGEND * bool(legend), _SIDE), "white")
    picture.paste(_dots(_pixels(found.position), colors))
    _write_legend(picture, legend)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _pixels(position: Array) -> Array:
    """Where each row lies in the square, in pixels (rows, 2): one scale for both axes, as distances
    mean something, and up is more."""
    low, high = position.min(axis=0), position.max(axis=0)
    scale = (_SIDE - 2 * _MARGIN) / (float((high - low).max()) or 1.0)
    from_center = (position - (low + high) / 2) * scale
    places: Array = _SIDE / 2 + from_center * np.array([1, -1])
    return places


def _dots(places: Array, colors: Sequence[Color]) -> Image.Image:
    large = Image.new("RGB", (_SIDE * _SMOOTH, _SIDE * _SMOOTH), "white")
    canvas, radius = ImageDraw.Draw(large), _SMOOTH * (4 if len(places) <= 5000 else 2)
    for (left, top), color in zip((places * _SMOOTH).tolist(), colors, strict=True):
        canvas.ellipse((left - radius, top - radius, left + radius, top + radius), fill=color)
    return large.resize((_SIDE, _SIDE), Image.Resampling.BOX)


def _write_legend(picture: Image.Image, legend: Sequence[tuple[Color, str]]) -> None:
    canvas, font, left = ImageDraw.Draw(picture), ImageFont.load_default(16), _SIDE + _MARGIN
    for line, (color, name) in enumerate(legend[:_MOST_NAMES]):
        top = _MARGIN + line * 22
        canvas.ellipse((left, top + 4, left + 12, top + 16), fill=color)
        canvas.text((left + 20, top), name[:22], fill="black", font=font)
    if len(legend) > _MOST_NAMES:
        more = f"and {len(legend) - _MOST_NAMES} more"
        canvas.text((left + 20, _MARGIN + _MOST_NAMES * 22), more, fill="black", font=font)


def _palette(count: int) -> list[Color]:
    if count <= len(_TABLEAU):
        return [_rgb(color) for color in _TABLEAU[:count]]
    hues = (colorsys.hsv_to_rgb(i / count, 0.75, 0.6 + 0.3 * (i % 2)) for i in range(count))
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in hues]


def _rgb(color: str) -> Color:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _between(part: float) -> Color:
    red, green, blue = (
        round(low + (high - low) * part) for low, high in zip(_LOW, _HIGH, strict=True)
    )
    return red, green, blue
