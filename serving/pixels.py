"""From a picture that Pillow has opened to the pixels of a row: one rule for training and serving.

The picture is turned upright as its EXIF says. Transparency becomes white. 16 bits are scaled to 8.
CMYK, palettes and other modes become RGB, or gray. Then it is resized, or scaled and cropped.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Pixels = npt.NDArray[np.uint8]

FITS: Final = ("refuse", "resize", "crop")
"""What is done with a picture of another size or other colors: it is refused; stretched; scaled to
cover the size, and its middle cut out."""

SWAPS_SIDES: Final = (5, 6, 7, 8)
"""Orientations whose operation swaps width and height."""

_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the operation that turns the picture upright. 1 is upright already."""

_TAG: Final = 0x0112
_HOLDERS: Final = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})
"""What an image's info has if there may be an orientation."""

_SIXTEEN_BITS: Final = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # I: of 32, which must not use them


class NoRuleError(ValueError):
    """Pixels that have no conversion to 8 bits; the message names them."""


def orientation(image: Image.Image, header_only: bool = False) -> int:
    """The EXIF orientation, 1 to 8; 1 if the EXIF is missing or damaged.

    header_only: do not decode a PNG's pixels to look for EXIF behind them
    Raises what Pillow raises if the pixels are damaged. Only the tag is read:
    ImageOps.exif_transpose also rewrites the EXIF, which fails for that of some cameras.
    """
    if image.format == "TIFF":
        return 1  # Pillow turns it as it reads the pixels
    if image.format == "PNG" and not header_only:
        image.load()
    if _HOLDERS.isdisjoint(image.info):
        return 1
    try:
        # PNG's own getexif would decode the pixels, and hide that they are damaged.
        return int(Image.Image.getexif(image).get(_TAG, 1))
    except MemoryError:
        raise
    except Exception:  # a foreign file can make Pillow raise anything
        return 1


def to_pixels(
    image: Image.Image,
    mode: str,
    size: tuple[int, int] | None = None,
    crop: bool = False,
    turn: int | None = None,
) -> Pixels:
    """uint8 (height, width) for mode L, (height, width, 3) for RGB, by the module's rules.

    size: height and width to resize to, or to crop to; None: the picture's own
    turn: its orientation, if that is known
    Raises NoRuleError, and what Pillow raises if the file is damaged.
    """
    operation = _UPRIGHT.get(orientation(image) if turn is None else turn)
    image = _converted(image, mode)
    if operation is not None:
        image = image.transpose(operation)
    if size and crop:
        image = ImageOps.fit(image, size[::-1], Image.Resampling.LANCZOS)
    elif size:
        image = image.resize(size[::-1], Image.Resampling.LANCZOS)
    shape = (image.height, image.width, 3) if mode == "RGB" else (image.height, image.width)
    return np.frombuffer(image.tobytes(), np.uint8).reshape(shape)  # np.asarray takes longer


def _converted(image: Image.Image, mode: str) -> Image.Image:
    image.load()  # if the file is damaged, it raises here and not in `convert`
    if image.mode in _SIXTEEN_BITS:
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 0xFFFF:
            raise NoRuleError("32-bit pixels")
        image = Image.fromarray(((wide.astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise NoRuleError("floating-point pixels (mode F)")
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image if image.mode == "RGBA" else image.convert("RGBA"))
        image = white
    if image.mode == mode:
        return image
    try:
        return image.convert(mode)
    except ValueError:
        raise NoRuleError(f"mode {image.mode}, which does not convert to {mode}") from None
