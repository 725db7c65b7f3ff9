"""Reads one picture; latentd.pixels has the rules."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from PIL import Image, UnidentifiedImageError

from latentd import pixels
from latentd.training.files import open_plain

Pixels = pixels.Pixels

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
            if turned and _is_on_its_side(image):
                height, width = width, height
            if image.mode in _WITHOUT_RULE:
                return Bad(f"of mode {image.mode}, which has no rule")
            return Header(height, width, image.mode, getattr(image, "is_animated", False))
    except Exception as error:  # a foreign file can make Pillow raise anything
        return _fault(error)


def _is_on_its_side(image: Image.Image) -> bool:
    try:
        return pixels.orientation(image) in pixels.SWAPS_SIDES
    except Exception:  # damaged, which reading the picture reports
        return False


def read_picture(
    path: Path, mode: str = "RGB", size: tuple[int, int] | None = None, crop: bool = False
) -> Pixels | Bad:
    """A picture in mode L or RGB; size and crop: as of pixels.to_pixels."""
    try:
        with open_plain(path) as file, Image.open(file) as image:
            return pixels.to_pixels(image, mode, size, crop)
    except pixels.NoRuleError as error:
        return Bad(f"of {error}, which have no rule")
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
