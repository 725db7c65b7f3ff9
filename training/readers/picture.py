"""Reads one picture, by the same rules as serving.

The EXIF orientation is applied. Transparency is blended onto white. 16-bit values are scaled to 8
bits. CMYK, palette and other color spaces become RGB, or grey if that is asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from latentd import exif
from latentd.training.files import open_plain

Pixels = npt.NDArray[np.uint8]

_SIXTEEN_BITS: Final = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # I: of 32, which must not use them
_WITHOUT_RULE: Final = ("F", "LAB")  # floats have no known range; Pillow converts no LAB


class Bad(NamedTuple):
    """Why a file cannot be used."""

    reason: str  # the same text for all files with this fault
    detail: str = ""  # for this file only


class Header(NamedTuple):
    """A picture's size and mode after it is turned."""

    height: int
    width: int
    mode: str  # Pillow's mode
    animated: bool


def read_header(path: Path, turned: bool) -> Header | Bad:
    """turned: whether the orientation matters. A PNG stores it after its pixels."""
    try:
        with open_plain(path) as file, Image.open(file) as image:
            height, width = image.size[::-1]
            if turned and exif.orientation(image) in exif.SWAPS_SIDES:
                height, width = width, height
            if image.mode in _WITHOUT_RULE:
                return Bad(f"of mode {image.mode}, which has no rule")
            return Header(height, width, image.mode, getattr(image, "is_animated", False))
    except Exception as error:  # a foreign file can make Pillow raise anything
        return _fault(error)


def read_picture(
    path: Path, mode: str = "RGB", resized: tuple[int, int] | None = None
) -> Pixels | Bad:
    """A picture read by the module's rules, in mode L or RGB. resized: height and width."""
    try:
        with open_plain(path) as file, Image.open(file) as opened:
            turn = exif.UPRIGHT.get(exif.orientation(opened))
            image: Image.Image = opened
            if image.mode in _SIXTEEN_BITS:
                values = np.asarray(image)
                if values.min() < 0 or values.max() > 0xFFFF:
                    return Bad("of 32-bit values, which have no rule")
                image = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
            elif image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            image = image.convert(mode)
            if turn is not None:
                image = image.transpose(turn)
            if resized:
                image = image.resize(resized[::-1], Image.Resampling.LANCZOS)
            return np.asarray(image)
    except Exception as error:  # as above
        return _fault(error)


def _fault(error: Exception) -> Bad:
    """Describe an error of Pillow or the file system. Equal faults get equal text."""
    if isinstance(error, UnidentifiedImageError):
        return Bad("no picture of a kind that is read")
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return Bad(f"of more than {Image.MAX_IMAGE_PIXELS:,} pixels")
    if isinstance(error, OSError) and error.errno:
        return Bad(f"unreadable ({error.strerror})")
    return Bad("damaged", str(error) or type(error).__name__)


@contextmanager
def warnings_ignored() -> Iterator[None]:
    """Ignore Pillow's warnings about files that it can read. The warning that a picture may be too
    large to decode is an error here. Filters apply to the process, not to a thread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
