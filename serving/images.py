"""PNG files to pixel rows and back, and grids of images for people to look at."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from serving.bundle import XSpec
from serving.errors import InvalidInput

Pixels = NDArray[np.uint8]

_READABLE: Final = {"L": ("L", "1"), "RGB": ("RGB", "P", "L", "1")}
"""What each kind of model takes: its own mode and those that widen to it without loss."""


def fits(x: XSpec) -> bool:
    """Whether rows of this kind can travel as PNG."""
    channels = x.shape[2:] or (1,)
    return x.kind == "image" and x.dtype == "uint8" and channels in ((1,), (3,))


def read_pngs(files: Sequence[bytes], x: XSpec, field: str) -> Pixels:
    """uint8 of shape (len(files), *x.shape). Raises InvalidInput naming the file's index.

    The header is checked before a pixel is decoded, so that a small file cannot ask for a large
    image's memory.
    """
    if not fits(x):
        raise InvalidInput(field, "this model's rows are no 8-bit images", "Send a tensor")
    rows = np.empty((len(files), *x.shape), np.uint8)
    for index, data in enumerate(files):
        rows[index] = read_picture(data, x, f"{field}[{index}]")
    return rows


def read_picture(
    data: bytes,
    x: XSpec,
    field: str,
    formats: tuple[str, ...] | None = ("PNG",),
    resize: bool = False,
) -> Pixels:
    """uint8 of x.shape from one file of a model that `fits`.

    formats: pillow's names of those that are read; None: every one that pillow knows, turned as
    its camera was held. resize: to the model's size, as training does. Raises InvalidInput naming
    `field`.
    """
    kind = formats[0] if formats and len(formats) == 1 else "image"
    mode = "RGB" if x.shape[2:] == (3,) else "L"
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=formats)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise InvalidInput(field, f"not a readable {kind} file") from None
    try:
        if formats is None:
            image = ImageOps.exif_transpose(image)
        if resize and image.mode in _READABLE[mode]:
            image = image.convert(mode).resize((x.shape[1], x.shape[0]), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError):
        raise InvalidInput(field, f"a damaged {kind} file: its pixels cannot be read") from None
    if image.size != (x.shape[1], x.shape[0]):
        raise InvalidInput(
            field,
            f"{image.size[0]} x {image.size[1]} pixels, where the model takes "
            f"{x.shape[1]} x {x.shape[0]} (width x height)",
            "Resize it as the training images were",
        )
    if image.mode not in _READABLE[mode]:
        raise InvalidInput(
            field,
            f"{kind} of mode {image.mode}, where the model takes {mode}",
            f"Convert it to 8-bit {'RGB' if mode == 'RGB' else 'grey'} without alpha",
        )
    try:
        pixels: Pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    except (OSError, ValueError, SyntaxError):
        raise InvalidInput(field, f"a damaged {kind} file: its pixels cannot be read") from None
    return pixels.reshape(x.shape)


def write_pngs(rows: Pixels) -> list[bytes]:
    """One PNG a row of uint8 (rows, height, width[, 1 or 3])."""
    files = []
    for row in rows:
        file = io.BytesIO()
        _image(row).save(file, "PNG", compress_level=1)  # small images: speed over the last bytes
        files.append(file.getvalue())
    return files


def grid(rows: Pixels, columns: int = 0, least_side: int = 512) -> bytes:
    """All rows in one PNG, `columns` wide (0: square), enlarged by whole pixels for the eye."""
    count, height, width = rows.shape[:3]
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    lines = -(-count // columns)
    gap = 1 + max(height, width) // 16
    canvas = np.full(
        (lines * (height + gap) - gap, columns * (width + gap) - gap, *rows.shape[3:]), 255, "u1"
    )
    for index, row in enumerate(rows):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = row
    image = _image(canvas)
    scale = max(1, round(least_side / max(image.size)))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _image(pixels: NDArray[Any]) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
