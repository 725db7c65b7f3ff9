"""Rows of audio for the checks: notes of several partials that begin and fade, and some noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from latentd.training.array import Array

_PARTIALS: Final = 6
_PITCHES: Final = (60.0, 1500.0)  # the lowest and the highest of a note, in Hz
_NOTES_PER_SECOND: Final = 6
_NOISE: Final = 0.02  # of full scale
_PEAK: Final = 0.8  # of full scale


def rows(shape: Sequence[int], count: int, sample_rate: int) -> Array:
    """Rows from -1 to 1, (count, *shape), shape being samples, channels; the same each time."""
    random = np.random.default_rng(0)
    return np.stack([_row(shape[0], shape[1], sample_rate, random) for _ in range(count)])


def _row(samples: int, channels: int, sample_rate: int, random: np.random.Generator) -> Array:
    seconds = np.arange(samples) / sample_rate
    sound = np.zeros((samples, channels))
    for begin in np.arange(0, seconds[-1] + 1 / sample_rate, 1 / _NOTES_PER_SECOND):
        since = seconds - begin
        envelope = np.where(since >= 0, np.exp(-since.clip(0) * random.uniform(2, 12)), 0)
        pitch = np.exp(random.uniform(*np.log(_PITCHES)))
        note = sum(
            np.sin(2 * np.pi * pitch * n * since + random.uniform(0, 2 * np.pi)) / n
            for n in range(1, _PARTIALS + 1)
            if pitch * n < sample_rate / 2
        )
        sound += (envelope * note)[:, None] * random.uniform(0.2, 1, channels)
    sound *= _PEAK / max(float(np.abs(sound).max()), 1e-9)
    noise = _NOISE * random.standard_normal(sound.shape)
    result: Array = (sound + noise).clip(-1, 1)
    return result
