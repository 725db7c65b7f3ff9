"""Image files to pixel rows and back; latentd.pixels has the rules of their conversion."""

from __future__ import annotations

import contextlib
import io
import math
import struct
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from latentd import pixels
from latentd.bundle import DataSpec
from latentd.errors import InvalidArgument
from latentd.pixels import Pixels

_ACCEPTED_MODES: Final = {"L": ("L", "1"), "RGB": ("RGB", "P", "L", "1")}
"""Pillow's modes that each kind of model accepts: its own, and those that convert without loss."""

FORMATS: Final = ("PNG", "JPEG", "WEBP")
"""Pillow's names of the formats of the files in requests and responses."""

_SAVED: Final[dict[str, dict[str, Any]]] = {
    "PNG": {"compress_level": 1},  # small images: speed matters more than size
    "JPEG": {"quality": 90, "subsampling": "4:4:4"},
    "WEBP": {"quality": 90},
}
"""How files of each format are written; vae.proto states the qualities."""

_DAMAGED: Final = "damaged image file: its pixels cannot be read"
_GRID_SIDE: Final = 1024  # pixels
_MAX_SIDE: Final = {"JPEG": 65_500, "WEBP": 16_383}  # pixels, of a file
NO_IMAGES: Final = "this model's data is not 8-bit images"
FIT_OF_REQUEST: Final = "Use FIT_RESIZE or FIT_CROP"
FIT_OF_COMMAND: Final = "Pass --fit resize or --fit crop"

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNK: Final = struct.Struct(">I4s")  # the length of its content, and its kind
_PNG_EXIF: Final = (b"Raw profile type exif", b"XML:com.adobe.xmp")
"""How chunks of text begin that hold EXIF or what may replace it."""

_SCAN: Final = b"\xff\xda"
_MAX_SCANS: Final = 100
"""Of a JPEG. Real ones have about ten; each of a few bytes can cost as much as all pixels."""

_MAX_PIXELS_OF_ALL: Final = 1 << 28
"""Of the files of a request. Decoding so many takes 3 to 30 seconds, by the format."""

LARGE: Final = 1 << 20
"""Decoding so many pixels takes 10 to 100 ms."""


class _Room:
    """Lets threads decode large images of so many pixels in all; others wait. Pillow needs up to 20
    bytes for each."""

    def __init__(self, pixels: int) -> None:
        self._size = self._free = pixels
        self._changed = threading.Condition()

    @contextmanager
    def take(self, image: Image.Image) -> Iterator[None]:
        needed = min(image.width * image.height, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= needed)
            self._free -= needed
        try:
            yield
        finally:
            with self._changed:
                self._free += needed
                self._changed.notify_all()


_ROOM: Final = _Room(Image.MAX_IMAGE_PIXELS or 0)


def _room(image: Image.Image) -> AbstractContextManager[None]:
    return _ROOM.take(image) if image.width * image.height > LARGE else nullcontext()


def decode_files(files: Sequence[bytes], x: DataSpec, field: str, fit: str = "refuse") -> Pixels:
    """uint8 of shape (len(files), *x.shape). fit: see decode_image.

    Raises InvalidArgument naming the file's index.
    """
    rows = np.empty((len(files), *x.shape), np.uint8)
    for index, data in enumerate(files):
        rows[index] = decode_image(data, x, f"{field}[{index}]", fit)
    return rows


def count_pixels(files: Sequence[bytes], field: str) -> int:
    """The pixels of all files of a request that are made to fit, by their headers. Unreadable files
    do not count. Raises InvalidArgument if there are more than are decoded."""
    total = 0
    for index, data in enumerate(files):
        with contextlib.suppress(InvalidArgument):
            image = _open(data, field, FORMATS)
            total += image.width * image.height
        if total > _MAX_PIXELS_OF_ALL:
            what = f"the first {index + 1} files have more than {_MAX_PIXELS_OF_ALL:,} pixels"
            raise InvalidArgument(field, what, "Send the files in several requests")
    return total


def height_and_width(
    file: bytes | BinaryIO, field: str, formats: tuple[str, ...] | None = None
) -> tuple[int, int]:
    """Of an image file, after it is turned, by its header. Of a PNG that is not in memory, EXIF
    behind the pixels is ignored: it is rare there.

    formats: as of decode_image. Raises InvalidArgument naming `field`.
    """
    return _upright(image := _open(file, field, formats), pixels.orientation(image, True))


def decode_image(
    data: bytes,
    x: DataSpec,
    field: str,
    fit: str = "refuse",
    formats: tuple[str, ...] | None = FORMATS,
    how: str = FIT_OF_REQUEST,
) -> Pixels:
    """uint8 of x.shape from one image file; x must be `is_8bit_image`. Of several frames, the
    first is used. The header is checked before pixels are decoded.

    fit:     one of pixels.FITS
    formats: Pillow's names of the accepted formats; None: all that Pillow knows
    how:     what to do about a file that does not fit, for the error
    Raises InvalidArgument naming `field`, whatever Pillow raises.
    """
    image, mode = _open(data, field, formats), "RGB" if x.shape[2:] == (3,) else "L"
    size = x.shape[0], x.shape[1]
    turn = pixels.orientation(image, header_only=True)
    if fit == "refuse":
        _check_lossless(image, turn, size, mode, field, how)
    try:
        with _room(image):
            wanted = None if fit == "refuse" else size
            return pixels.to_pixels(image, mode, wanted, fit == "crop", turn).reshape(x.shape)
    except MemoryError:
        raise
    except pixels.NoRuleError as error:
        raise InvalidArgument(field, str(error), "Save it as RGB with 8 bits") from None
    except Exception:  # on a bad file Pillow may raise any exception
        raise InvalidArgument(field, _DAMAGED) from None


def ignore_pillow_warnings() -> None:
    """As pillow_warnings_ignored, for good: for a process whose threads decode files of others."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


@contextmanager
def pillow_warnings_ignored() -> Iterator[None]:
    """Hide Pillow's warnings of damaged EXIF and the like in files that it can read: users may have
    thousands of them. The filter is global to the process, so use it in one thread at a time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _open(
    file: bytes | BinaryIO, field: str, formats: tuple[str, ...] | None
) -> ImageFile.ImageFile:
    """Read the header. Raises InvalidArgument."""
    opened = io.BytesIO(_with_exif_first(file)) if isinstance(file, bytes) else file
    try:
        image = Image.open(opened, formats=formats)
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(field) from None
    except Exception:  # on a bad file Pillow may raise any exception
        kind = "PNG, JPEG or WebP" if formats else "image"
        raise InvalidArgument(field, f"not a readable {kind} file") from None
    if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise _too_large(field)
    is_jpeg = image.format in ("JPEG", "MPO")
    if is_jpeg and isinstance(file, bytes) and file.count(_SCAN) > _MAX_SCANS:
        raise InvalidArgument(field, f"a JPEG of more than {_MAX_SCANS} scans", "Save it again")
    return image


def _too_large(field: str) -> InvalidArgument:
    limit = Image.MAX_IMAGE_PIXELS
    return InvalidArgument(field, f"more than {limit:,} pixels", "Use a smaller image")


def _with_exif_first(file: bytes) -> bytes:
    """The file. Of a PNG, what tells its orientation behind its pixels is repeated before them: so
    Pillow need not decode them to look for it."""
    if not file.startswith(_PNG_SIGNATURE):
        return file
    at, first_pixels, late = len(_PNG_SIGNATURE), 0, []
    while at + _PNG_CHUNK.size <= len(file):
        length, kind = _PNG_CHUNK.unpack_from(file, at)
        end = at + length + 12
        if kind == b"IDAT":
            first_pixels = first_pixels or at
        elif first_pixels and (kind == b"eXIf" or file.startswith(_PNG_EXIF, at + _PNG_CHUNK.size)):
            late.append(file[at:end])
        at = end
    return b"".join((file[:first_pixels], *late, file[first_pixels:])) if late else file


def _upright(image: Image.Image, turn: int) -> tuple[int, int]:
    """Height and width after it is turned."""
    return image.size if turn in pixels.SWAPS_SIDES else (image.height, image.width)


def _check_lossless(
    image: ImageFile.ImageFile,
    turn: int,
    size: tuple[int, int],
    mode: str,
    field: str,
    how: str,
) -> None:
    """Raise InvalidArgument unless the image becomes pixels of this size and mode without loss."""
    height, width = _upright(image, turn)
    if (height, width) != size:
        what = f"expected {size[1]} x {size[0]} pixels (width x height), got {width} x {height}"
        raise InvalidArgument(field, what, f"{how} to resize it")
    if image.mode == "F":
        return  # no fit converts it, as the conversion says
    # The mode tells it of gray images only. A tile is codec, place, offset, arguments.
    if image.tile and ";16" in str(image.tile[0][3]):
        raise InvalidArgument(field, "16 bits per channel", f"{how} to convert it")
    if image.mode not in _ACCEPTED_MODES[mode] or image.has_transparency_data:
        transparent = " with transparency" if image.has_transparency_data else ""
        what = f"expected an image of mode {mode}, got mode {image.mode}{transparent}"
        raise InvalidArgument(field, what, f"{how} to convert it")


def encode_files(rows: Iterable[Pixels], form: str = "PNG") -> list[bytes]:
    """One file per row of uint8, each (height, width[, 1 or 3]). form: one of FORMATS."""
    files = []
    for row in rows:
        file = io.BytesIO()
        _image(row).save(file, form, **_SAVED[form])
        files.append(file.getvalue())
    return files


def make_grid(rows: Pixels, columns: int = 0, form: str = "PNG") -> bytes:
    """All rows in one file with `columns` columns (0: square), enlarged by a whole factor to about
    a thousand pixels. Raises InvalidArgument if a file of this form cannot be so large."""
    count, height, width = rows.shape[:3]
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    lines = -(-count // columns)
    gap = 1 + max(height, width) // 16
    sides = lines * (height + gap) - gap, columns * (width + gap) - gap
    if max(sides) > _MAX_SIDE.get(form, math.inf):
        raise InvalidArgument(
            "columns",
            f"a grid of {lines} x {columns} pictures has {sides[1]} x {sides[0]} pixels; "
            f"{form} takes {_MAX_SIDE[form]} a side",
            "Ask for fewer pictures, another number of columns, or PNG",
        )
    canvas = np.full((*sides, *rows.shape[3:]), 255, "u1")
    for index, row in enumerate(rows):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = row
    image = _image(canvas)
    scale = max(1, round(_GRID_SIDE / max(image.size)))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, form, **({} if form == "PNG" else _SAVED[form]))  # a grid compresses well
    return file.getvalue()


def to_rgb(rows: Pixels) -> Pixels:
    """Gray or RGB images (rows, height, width[, 1 or 3]) as RGB."""
    gray = rows if rows.ndim == 4 else rows[..., None]
    return np.broadcast_to(gray, (*gray.shape[:3], 3))


def heat_scale(parts: Sequence[NDArray[np.float32]]) -> tuple[float, float]:
    """The lowest and the highest number of a pixel, of all parts. parts: as heat_maps has them."""
    sums = [_pixel_sums(part) for part in parts]
    low, high = min(part.min() for part in sums), max(part.max() for part in sums)
    return float(low), float(high)


def heat_maps(parts: Sequence[NDArray[np.float32]], scale: tuple[float, float]) -> list[Pixels]:
    """Numbers of pixels (rows, height, width[, channels]) as RGB images: from black, the lower end
    of the scale, over red to yellow. Channels are summed."""
    low, high = scale
    maps = []
    for part in parts:
        heat = (_pixel_sums(part) - low) / ((high - low) or 1.0)
        colors = np.stack((2 * heat, 2 * heat - 1, np.zeros_like(heat)), axis=3)
        maps.append(np.rint(255 * colors.clip(0, 1)).astype(np.uint8))
    return maps


def _pixel_sums(part: NDArray[np.float32]) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = part.reshape(*part.shape[:3], -1).sum(axis=3, dtype=np.float64)
    return sums


def shrunk(pixels: Pixels, side: int) -> Pixels:
    """The image, (height, width[, 1 or 3]), reduced so that neither side is longer than `side`."""
    if max(pixels.shape[:2]) <= side:
        return pixels
    image = _image(pixels)
    image.thumbnail((side, side))
    reduced: Pixels = np.asarray(image).reshape(image.height, image.width, *pixels.shape[2:])
    return reduced


def _image(pixels: NDArray[Any]) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
