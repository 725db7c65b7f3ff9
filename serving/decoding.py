"""How a decoder of texts, or of rows with columns, chooses each element of x'.

Such a decoder takes a *choice* for each element after the latent. A choice below 0 is greedy: the
likeliest byte after those before it, the mean of a numeric column, or the likeliest level of a
categorical one. From 0 to 1 it is a uniform number that samples the byte or the value. From 1 on,
for texts only, it forces the byte that is this number less 1, whatever the model expects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from latentd import latents
from latentd.latents import Noise

GREEDY: Final = -1.0
FORCED: Final = 1.0
"""The choice that forces the byte 0; one more for each byte after it."""

Choices = NDArray[np.float32]
"""float32, (rows, length)."""


@dataclass(frozen=True, slots=True)
class Greedy:
    """The likeliest byte after each, in rows of `length` bytes; or the mean, of so many columns."""

    length: int

    def choices(self, start: int, stop: int) -> Choices:
        """Those of rows start..stop of a request."""
        return np.full((stop - start, self.length), np.float32(GREEDY))


@dataclass(frozen=True, slots=True)
class Sampled:
    """Sampled by uniform numbers: those of the noise that decides, or would decide, z."""

    length: int
    noise: Noise

    def choices(self, start: int, stop: int) -> Choices:
        """As Greedy.choices."""
        return latents.uniform([self.noise.slice(start, stop)], self.length)


@dataclass(frozen=True, slots=True)
class TeacherForced:
    """The bytes of texts: uint8 (texts, length). The decoder then computes their likelihood."""

    x: NDArray[np.uint8]

    def choices(self, start: int, stop: int) -> Choices:
        """As Greedy.choices. Row i is text i, and after the last text again the first."""
        texts = self.x[np.arange(start, stop) % len(self.x)]
        return texts.astype(np.float32) + np.float32(FORCED)


@dataclass(frozen=True, slots=True)
class DecodeAndScore:
    """Rows decoded one way, and then the same number of rows as the bytes of texts.

    One request so decodes latents and scores texts by them: the queue counts all of its work.
    """

    decoded: Greedy | Sampled
    scored: TeacherForced

    def choices(self, start: int, stop: int) -> Choices:
        """As Greedy.choices."""
        texts = len(self.scored.x)
        decoded = self.decoded.choices(min(start, texts), min(stop, texts))
        return np.concatenate((decoded, self.scored.choices(max(start, texts), max(stop, texts))))


Decoding = Greedy | Sampled | TeacherForced | DecodeAndScore
