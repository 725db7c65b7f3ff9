"""Which way up an image file is, by its EXIF: one rule for training, jobs and requests."""

from __future__ import annotations

from typing import Final

from PIL import Image

UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the operation that turns the image upright. 1 is upright already."""

SWAPS_SIDES: Final = (5, 6, 7, 8)
"""Orientations whose operation swaps width and height."""

_TAG: Final = 0x0112


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if the EXIF is missing or damaged.

    Only the tag is read: ImageOps.exif_transpose also rewrites the EXIF, which fails for that of
    some cameras.
    """
    if image.format == "TIFF":
        return 1  # Pillow turns it as it reads the pixels
    try:
        return int(image.getexif().get(_TAG, 1))
    except MemoryError:
        raise
    except Exception:  # a foreign file can make Pillow raise anything
        return 1
