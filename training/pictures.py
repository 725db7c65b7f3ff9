"""A folder of pictures as one array of bytes."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from tqdm import tqdm

from training.config import parse_size
from training.errors import TrainingError

SUFFIXES: Final = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
)
MODES: Final = {"L": (), "RGB": (3,)}  # Pillow's mode -> the shape of one pixel
_MANY: Final = 256  # pictures from which on reading them is worth a progress bar


def read_pictures(folder: Path, size: str | None) -> npt.NDArray[np.uint8]:
    """Every picture under `folder`, in the order of their paths.

    size: "HEIGHTxWIDTH" to resize to, or None to take the pictures as they are, which then must
    agree. Returns uint8 (rows, height, width) for grey and (rows, height, width, 3) for colour.
    Raises TrainingError for a folder that is missing or empty, a picture that cannot be read, and
    for the first two pictures that differ in size or mode.
    """
    if not folder.is_dir():
        raise TrainingError(f"{folder} is not a folder; images:DIR names a folder of pictures.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise TrainingError(
            f"{folder} holds no pictures; they are known by {', '.join(sorted(SUFFIXES))}."
        )
    resized = parse_size(size) if size else None
    first = _read(paths[0], resized)
    pictures = np.empty((len(paths), *first.shape), np.uint8)

    def read_into(row: int) -> None:
        picture = _read(paths[row], resized)
        if picture.shape != first.shape:
            raise TrainingError(
                f"{paths[0]} is {_words(first)} and {paths[row]} is {_words(picture)}; all must "
                "agree. Make them the same mode, and the same size or pass --image-size "
                "HEIGHTxWIDTH."
            )
        pictures[row] = picture

    # Pillow decodes outside the interpreter's lock, so threads are enough.
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for _ in tqdm(
            pool.map(read_into, range(len(paths))),
            desc=f"reading {folder}",
            total=len(paths),
            unit="picture",
            disable=None if len(paths) >= _MANY else True,
        ):
            pass
    return pictures


def _read(path: Path, resized: tuple[int, int] | None) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)  # as its camera was held
            if picture.mode not in MODES:
                raise TrainingError(
                    f"{path} has mode {picture.mode}; convert it to 8-bit grey (L) or colour (RGB)."
                )
            if resized:
                picture = picture.resize(resized[::-1], Image.Resampling.LANCZOS)
            return np.asarray(picture)
    except TrainingError:
        raise
    except Exception as error:  # the bytes of a foreign file can make Pillow raise anything
        raise TrainingError(f"{path} cannot be read ({error}); replace or remove it.") from None


def _words(picture: npt.NDArray[np.uint8]) -> str:
    height, width, *channels = picture.shape
    return f"{height}x{width} {'RGB' if channels else 'grey'}"
