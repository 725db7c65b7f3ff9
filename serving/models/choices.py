"""How each byte of a text, or each column of a row, is chosen: a part of what the decoder takes.

A choice below 0 is the likeliest byte after those before it, the mean of a numeric column, or the
likeliest level of a categorical one. From 0 to 1 it is a uniform number that draws the byte or the
value. From 1 on, for texts only, the byte is that number less 1, whatever the model expects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from latentd import latents
from latentd.batching.entries import BatchItem
from latentd.latents import Latents, NoiseRange

_GREEDY: Final = np.float32(-1)


@dataclass(frozen=True, slots=True)
class Greedy:
    """The likeliest byte after each, in rows of `length` bytes; or the mean, of so many columns."""

    length: int

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """The choices of rows start..stop of a request: float32 (rows, length)."""
        return np.full((stop - start, self.length), _GREEDY)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Drawn by uniform numbers: those of the noise that decides, or would decide, z."""

    length: int
    draw: NoiseRange

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """As Greedy.rows."""
        return latents.uniform([self.draw.slice(start, stop)], self.length)


@dataclass(frozen=True, slots=True)
class Given:
    """The bytes of texts: uint8 (texts, length). The decoder then computes their likelihood."""

    x: NDArray[np.uint8]

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """As Greedy.rows. Row i is text i, and after the last text again the first."""
        texts = self.x[np.arange(start, stop) % len(self.x)]
        return texts.astype(np.float32) + np.float32(1)


@dataclass(frozen=True, slots=True)
class ThenGiven:
    """Rows decoded one way, and then the same number of rows as the bytes of texts.

    One request so decodes latents and scores texts by them: the queue counts all of its work.
    """

    decoded: Greedy | Drawn
    given: Given

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """As Greedy.rows."""
        texts = len(self.given.x)
        decoded = self.decoded.rows(min(start, texts), min(stop, texts))
        return np.concatenate((decoded, self.given.rows(max(start, texts), max(stop, texts))))


Choices = Greedy | Drawn | Given | ThenGiven


def decoder_rows(z: Latents, batch: Sequence[BatchItem]) -> NDArray[np.float32]:
    """The rows that the decoder takes: each latent of the batch, and its choices."""
    parts = [item.payload.choices.rows(item.start, item.stop) for item in batch]
    rows: NDArray[np.float32] = np.concatenate((z, np.concatenate(parts)), axis=1)
    return rows
