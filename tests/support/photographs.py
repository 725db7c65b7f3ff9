"""A folder as people have them: photographs of all kinds, damaged ones, links, other files."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

ORIENTATION: Final = 0x0112  # EXIF's tag
_TURNED: Final = {  # orientation -> how its pixels are stored
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
_FOLDERS: Final = (
    *(b"", b"summer", b"winter/day 1", "Gr\u00fc\u00dfe \u2600".encode(), b"-rf", b"\xe9t\xe9"),
    b"deep/er/and/deeper",
)

Write = Callable[[Image.Image, Path, int], None]


class Photographs(NamedTuple):
    """What `make` wrote."""

    upright: dict[Path, Image.Image]  # the good files, and how they look
    bad: dict[str, int]  # reason -> how many files have the suffix of a picture and cannot be used
    others: dict[str, int]  # reason -> how many other files and folders there are


def make(folder: Path, good: int = 372) -> Photographs:
    """Write `good` files that can be used and 28 that cannot."""
    rng, photographs = np.random.default_rng(0), load_sample_images().images
    upright: dict[Path, Image.Image] = {}
    kinds = list(_KINDS)

    def crop(number: int) -> Image.Image:
        height, width = rng.integers(40, 200, 2)
        top, left = rng.integers(0, 427 - height), rng.integers(0, 640 - width)
        pixels = photographs[number % 2][top : top + height, left : left + width]
        return Image.fromarray(pixels)

    def path(number: int, suffix: str) -> Path:
        place = folder / os.fsdecode(_FOLDERS[number % len(_FOLDERS)])
        place.mkdir(parents=True, exist_ok=True)
        return place / f"{'IMG_' if number % 3 else 'Photo '}{number:04}{suffix}"

    for number in range(good - 12):
        suffix = kinds[number % len(kinds)]
        picture, file = crop(number), path(number, suffix.partition(" ")[2])
        _KINDS[suffix](picture, file, number)
        upright[file] = picture
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    for number in range(good - 12, good):  # half of them linked by name, half by their folder
        picture, place = crop(number), elsewhere / "album" / f"{number}.png"
        if number % 2:
            place, file = elsewhere / place.name, folder / f"linked {place.name}"
            file.symlink_to(place)
        else:
            file = folder / "linked album" / place.name
        place.parent.mkdir(exist_ok=True)
        picture.save(place)
        upright[file] = picture
    (folder / "linked album").symlink_to(elsewhere / "album")
    return Photographs(upright, _bad(folder, crop, path), _others(folder))


def _jpeg(picture: Image.Image, path: Path, number: int) -> None:
    """Stored as cameras do that are held in all ways."""
    orientation = 1 + number // len(_KINDS) % 8
    exif, turn = Image.Exif(), _TURNED[orientation]
    exif[ORIENTATION] = orientation
    (picture if turn is None else picture.transpose(turn)).save(path, quality=95, exif=exif)


def _transparent(picture: Image.Image, path: Path, number: int) -> None:
    """Opaque but for a corner, which the white background fills."""
    alpha = Image.new("L", picture.size, 255)
    alpha.paste(0, (0, 0, 8, 8))
    layer = picture.copy()
    layer.putalpha(alpha)
    layer.save(path)
    picture.paste("white", (0, 0, 8, 8))


def _sixteen_bits(picture: Image.Image, path: Path, number: int) -> None:
    grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(path)
    _make_grey(picture)


def _grey(picture: Image.Image, path: Path, number: int) -> None:
    picture.convert("L").save(path)
    _make_grey(picture)


def _make_grey(picture: Image.Image) -> None:
    picture.paste(picture.convert("L").convert("RGB"))


def _animated(picture: Image.Image, path: Path, number: int) -> None:
    picture.save(path, save_all=True, append_images=[Image.new("RGB", picture.size)])


_KINDS: Final[dict[str, Write]] = {
    "rgb .jpg": _jpeg,
    "rgb .JPEG": _jpeg,
    "cmyk .jpg": lambda picture, path, _: picture.convert("CMYK").save(path, quality=95),
    "rgba .png": _transparent,
    "16 .png": _sixteen_bits,
    "palette .png": lambda picture, path, _: picture.quantize(256).save(path),
    "grey .jpg": _grey,
    "rgb .webp": lambda picture, path, _: picture.save(path, quality=95),
    "rgb .tiff": lambda picture, path, _: picture.save(path),
    "rgb .bmp": lambda picture, path, _: picture.save(path),
    "animated .gif": _animated,
}
"""Pillow's mode and the suffix -> a function that writes such a file. If the picture in the file
differs from the one that is given, the function changes that too."""


def _bad(
    folder: Path, crop: Callable[[int], Image.Image], path: Callable[[int, str], Path]
) -> dict[str, int]:
    for number in range(12):
        file, suffix = io.BytesIO(), ".jpg" if number % 3 else ".png"
        crop(number).save(file, "JPEG" if suffix == ".jpg" else "PNG")
        path(number, f" cut{suffix}").write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    for number in range(6):
        path(number, " text.jpg").write_text("<html>404</html>")
    for number in range(4):
        path(number, " empty.png").touch()
    for number in range(3):
        Image.fromarray(np.ones((50, 60), np.float32)).save(path(number, " floats.tif"))
    for number in range(2):
        path(number, " gone.jpg").symlink_to(folder / "nothing")
    (folder / "itself.png").symlink_to("itself.png")
    return {
        "damaged": 12,
        "no picture of a kind that is read": 10,
        "of mode F, which has no rule": 3,
        os.strerror(2): 2,
        os.strerror(40): 1,
    }


def _others(folder: Path) -> dict[str, int]:
    (folder / "summer" / "back").symlink_to(folder)  # makes a cycle
    (folder / ".thumbnails").mkdir()
    for name in ("notes.txt", ".DS_Store", "._IMG_0001.jpg", "IMG_9.HEIC", "README"):
        (folder / name).write_bytes(b"?")
    os.mkfifo(folder / "pipe.png")
    return {
        "hidden": 3,
        "links to folders read already": 1,
        ".txt": 1,
        ".heic": 1,
        "without a suffix": 1,
        "not plain files": 1,
    }
