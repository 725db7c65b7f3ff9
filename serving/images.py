"""Image files to pixel rows and back, and grids of images for display."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latentd import exif
from latentd.bundle import DataSpec
from latentd.errors import InvalidArgument

Pixels = NDArray[np.uint8]

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
NO_IMAGES: Final = "this model's data is not 8-bit images"
TRAINED_SIZE: Final = "Resize it like the training images"
SAME_SIZE: Final = "All files of a request must have one size: send each size in its own request"


def decode_files(
    files: Sequence[bytes], x: DataSpec, field: str, size_hint: str = TRAINED_SIZE
) -> Pixels:
    """uint8 of shape (len(files), *x.shape). Raises InvalidArgument naming the file's index.

    The header is checked before pixels are decoded, so a small file cannot make the server allocate
    a large image.
    """
    if not x.is_8bit_image:
        raise InvalidArgument(field, NO_IMAGES, "Send a tensor")
    rows = np.empty((len(files), *x.shape), np.uint8)
    for index, data in enumerate(files):
        rows[index] = decode_image(data, x, f"{field}[{index}]", size_hint=size_hint)
    return rows


def height_and_width(
    file: bytes | BinaryIO, field: str, formats: tuple[str, ...] | None = None
) -> tuple[int, int]:
    """Of an image file, by its header, after the rotation that decode_image applies.

    formats: as of decode_image. Raises InvalidArgument naming `field`.
    """
    image = _open(file, field, formats)
    size = image.height, image.width
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & set(image.info):
        return size  # Pillow would decode all pixels to look for EXIF behind them: it is rare there
    return size[::-1] if exif.orientation(image) in exif.SWAPS_SIDES else size


def decode_image(
    data: bytes,
    x: DataSpec,
    field: str,
    formats: tuple[str, ...] | None = FORMATS,
    resize: bool = False,
    size_hint: str = TRAINED_SIZE,
) -> Pixels:
    """uint8 of x.shape from one image file; x must be `is_8bit_image`. Of several frames, the
    first is used.

    formats: Pillow's names of the accepted formats; None: all that Pillow knows
    resize:  convert and resize the image to the model's, as training does
    size_hint: what to do with an image of another size, unless all formats are accepted
    Raises InvalidArgument naming `field`, whatever Pillow raises.
    """
    image = _open(data, field, formats)
    orientation = _orientation(image, data, field)
    if not resize:
        flag = "" if formats else "Pass --resize"
        _check_lossless(image, orientation, x, field, flag, size_hint)
    try:
        if orientation in exif.UPRIGHT:
            image = image.transpose(exif.UPRIGHT[orientation])
        image = _converted(image, "RGB" if x.shape[2:] == (3,) else "L")
        if resize:
            image = image.resize((x.shape[1], x.shape[0]), Image.Resampling.LANCZOS)
        pixels: Pixels = np.asarray(image)
    except MemoryError:
        raise
    except InvalidArgument as error:
        raise InvalidArgument(field, error.what, error.hint) from None
    except Exception:  # as above
        raise InvalidArgument(field, _DAMAGED) from None
    return pixels.reshape(x.shape)


@contextmanager
def pillow_warnings_ignored() -> Iterator[None]:
    """Hide Pillow's warnings of damaged EXIF and the like in files that it can read: users may have
    thousands of them. The filter is global to the process, so use it in one thread at a time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _open(file: bytes | BinaryIO, field: str, formats: tuple[str, ...] | None) -> Image.Image:
    """Read the header. Raises InvalidArgument."""
    opened = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        image: Image.Image = Image.open(opened, formats=formats)
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(field) from None
    except Exception:  # on a bad file Pillow may raise any exception
        raise InvalidArgument(
            field, f"not a readable {'PNG, JPEG or WebP' if formats else 'image'} file"
        ) from None
    if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise _too_large(field)
    return image


_FLOATS: Final = ("floating-point pixels (mode F)", "Save it with 8 bits")


def _too_large(field: str) -> InvalidArgument:
    limit = Image.MAX_IMAGE_PIXELS
    return InvalidArgument(field, f"more than {limit:,} pixels", "Use a smaller image")


_PNG_EXIF: Final = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
"""What a PNG holds somewhere if it has an orientation."""


def _orientation(image: Image.Image, data: bytes, field: str) -> int:
    """As exif.orientation. The pixels of a PNG are decoded only if it may have one behind them."""
    if image.format == "PNG":
        if not any(word in data for word in _PNG_EXIF):
            return 1
        try:
            image.load()
        except MemoryError:
            raise
        except Exception:
            raise InvalidArgument(field, _DAMAGED) from None
    return exif.orientation(image)


def _check_lossless(
    image: Image.Image,
    orientation: int,
    x: DataSpec,
    field: str,
    flag: str,
    size_hint: str,
) -> None:
    """Raise InvalidArgument unless the image converts to the model's size and mode without loss.

    flag:      the option that would convert it, for the error message; "": there is none
    size_hint: what to do with an image of another size if there is no such option
    """
    width, height = image.size[::-1] if orientation in exif.SWAPS_SIDES else image.size
    if (width, height) != (x.shape[1], x.shape[0]):
        raise InvalidArgument(
            field,
            f"expected {x.shape[1]} x {x.shape[0]} pixels (width x height), got {width} x {height}",
            f"{flag} to resize it" if flag else size_hint,
        )
    if image.mode == "F":
        raise InvalidArgument(field, *_FLOATS)  # no option converts it
    mode = "RGB" if x.shape[2:] == (3,) else "L"
    if image.mode not in _ACCEPTED_MODES[mode] or image.has_transparency_data:
        transparent = " with transparency" if image.has_transparency_data else ""
        raise InvalidArgument(
            field,
            f"expected an image of mode {mode}, got mode {image.mode}{transparent}",
            f"{flag} to convert it"
            if flag
            else f"Convert it to 8-bit {'RGB' if mode == 'RGB' else 'gray'} without alpha",
        )


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """The image in mode L or RGB, converted as training does: transparency becomes white, 16 bits
    are scaled to 8, and Pillow converts all else. Raises InvalidArgument for pixels without a
    defined range."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 0xFFFF:
            raise InvalidArgument("", "32-bit pixels", "Save it with 8 bits")
        image = Image.fromarray(((wide.astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise InvalidArgument("", *_FLOATS)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        image = Image.alpha_composite(white, layer)
    if image.mode == mode:
        return image
    image.load()  # raises if the file is damaged
    try:
        return image.convert(mode)
    except ValueError:
        what = f"mode {image.mode}, which Pillow cannot convert to {mode}"
        raise InvalidArgument("", what, "Save it as RGB") from None


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
    a thousand pixels."""
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
