"""Parts of real pictures, of any size and any number of channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from latentd.training.array import Array
from latentd.training.errors import AdmissionError

_LUMA: Final = np.array([0.299, 0.587, 0.114])  # how bright red, green and blue are


class Pictures:
    """Pictures to take parts of.

    images: uint8 (height, width, channels); (): two photographs that scikit-learn has
    """

    def __init__(self, images: Sequence[Array]) -> None:
        self._images = list(images) or _photographs()

    def rows(self, shape: Sequence[int], count: int) -> Array:
        """Parts from 0 to 1, (count, *shape), shape being height, width[, channels]: the middle of
        each picture, as large as fits, then smaller parts from anywhere."""
        random = np.random.default_rng(0)
        parts = []
        for number in range(count):
            again, index = divmod(number, len(self._images))
            part = _part(self._images[index], shape[0], shape[1], random if again else None)
            parts.append(_with_channels(part / 255, shape))
        return np.stack(parts)


def _part(image: Array, height: int, width: int, random: np.random.Generator | None) -> Array:
    """A part, whose pixels are means of squares of the image's pixels."""
    image = image.reshape(*image.shape[:2], -1)
    more = [(0, max(0, n - have)) for n, have in zip((height, width), image.shape, strict=False)]
    image = np.pad(image, [*more, (0, 0)], mode="symmetric")
    side = most = min(image.shape[0] // height, image.shape[1] // width)
    place = 0.5, 0.5
    if random is not None:
        side = int(np.exp(random.random() * np.log(most + 1)))
        place = random.random(), random.random()
    lengths = side * height, side * width
    top, left = (int((n - m) * p) for n, m, p in zip(image.shape, lengths, place, strict=False))
    cut = image[top : top + lengths[0], left : left + lengths[1]]
    means: Array = cut.reshape(height, side, width, side, -1).mean(axis=(1, 3))
    return means


def _with_channels(part: Array, shape: Sequence[int]) -> Array:
    """(height, width, channels) in another number of channels, or without that axis."""
    channels = shape[2] if len(shape) > 2 else 1
    if channels < 3 <= part.shape[2]:
        part = (part[..., :3] @ _LUMA)[..., None]
    repeats = -(-channels // part.shape[2])
    return np.tile(part, repeats)[..., :channels].reshape(shape)


def _photographs() -> list[Array]:
    try:
        from sklearn.datasets import load_sample_images  # heavy, and not everyone needs it
    except ImportError:
        raise AdmissionError(
            "The checks need pictures: name a folder of them with --images, or install "
            "scikit-learn, which has two photographs."
        ) from None
    return list(load_sample_images().images)
