"""Latents: seeded, seekable normal draws, and the ways between two points.

Row i of a draw is a pure function of (seed, stream, i): each row owns a fixed number of blocks of
the counter-based generator Philox 4x64 (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3"), so any range of rows can be drawn alone, in any order, on any machine.

"Any machine" is meant to the bit. numpy's log, exp and cos pick their code by the CPU's vector
instructions and differ in the last place between machines; additions, multiplications, divisions
and square roots are exact to IEEE 754 everywhere. The transform to normals uses only those.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Latents = NDArray[np.float32]
"""float32, shape (rows, latent size)."""

PRIOR: Final = 0
"""The stream of Sample: z ~ N(0, I)."""
POSTERIOR: Final = 1
"""The first stream of draws around an encoding; draw k of a row comes from POSTERIOR + k."""

_BLOCK: Final = 8  # normals from one Philox block: four words of 64 bits, two normals a word


@dataclass(frozen=True, slots=True)
class NoiseRange:
    """`rows` rows of standard normals, named but not yet drawn."""

    seed: int  # 0 .. 2^64 - 1
    offset: int  # index of the first row; offset + rows <= 2^63
    rows: int
    stream: int = PRIOR

    def part(self, start: int, stop: int) -> NoiseRange:
        """Rows start..stop of this draw, as a draw of its own."""
        if stop - start == self.rows:
            return self
        return NoiseRange(self.seed, self.offset + start, stop - start, self.stream)


def standard_normal(draws: Sequence[NoiseRange], latent_size: int) -> Latents:
    """Standard normals for all `draws`, one below the other, in one vectorised pass.

    Returns float32 of shape (sum of rows, latent_size).
    """
    blocks = -(-latent_size // _BLOCK)
    words = [_words(draw, blocks) for draw in draws]
    raw = words[0] if len(words) == 1 else np.concatenate(words)
    uniform = raw.view("<u4").reshape(-1, blocks * _BLOCK)[:, :latent_size]
    return _normal(uniform)


class _Generator(threading.local):
    """One Philox a thread, moved to wherever a draw begins: building one costs ten times more."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(key=0)
        self.counter = np.zeros(4, np.uint64)
        self.key = np.zeros(2, np.uint64)
        self.state: Any = {
            "bit_generator": "Philox",
            "state": {"counter": self.counter, "key": self.key},
            "buffer": np.zeros(4, np.uint64),
            "buffer_pos": 4,  # the buffer is spent: begin with a fresh block
            "has_uint32": 0,
            "uinteger": 0,
        }


_generator: Final = _Generator()


def _words(draw: NoiseRange, blocks: int) -> NDArray[np.uint64]:
    generator = _generator
    first = draw.offset * blocks
    generator.counter[0], generator.counter[1] = first & 0xFFFF_FFFF_FFFF_FFFF, first >> 64
    generator.key[0], generator.key[1] = draw.seed, draw.stream
    generator.philox.state = generator.state
    words: NDArray[np.uint64] = generator.philox.random_raw(draw.rows * blocks * 4)
    return words.astype("<u8", copy=False)


# Wichura (1988), "Algorithm AS 241: The percentage points of the normal distribution", PPND7:
# relative error about 1e-7, the precision of float32. Evaluated in float64.
_CENTRE: Final = 0.425
_A: Final = (5.9109374720e01, 1.5929113202e02, 5.0434271938e01, 3.3871327179e00)
_B: Final = (6.7187563600e01, 7.8757757664e01, 1.7895169469e01, 1.0)
_C: Final = (1.7023821103e-01, 1.3067284816e00, 2.7568153900e00, 1.4234372777e00)
_D: Final = (1.2021132975e-01, 7.3700164250e-01, 1.0)
_E: Final = (1.7337203997e-02, 4.2868294337e-01, 3.0812263860e00, 6.6579051150e00)
_F: Final = (1.2258202635e-02, 2.4197894225e-01, 1.0)


def _normal(uniform: NDArray[np.uint32]) -> Latents:
    """Inverse normal distribution function at (uniform + 1/2) / 2^32: within +-6.4."""
    q = (uniform.astype(np.float64) + (0.5 - 2.0**31)) * 2.0**-32  # exact; -1/2 < q < 1/2
    r = _CENTRE * _CENTRE - q * q
    tail = r < 0
    z = q * (_polynomial(_A, r) / _polynomial(_B, r))
    q = q[tail]
    if q.size:
        r = np.sqrt(-_log(0.5 - np.abs(q)))
        near, far = r - 1.6, r - 5.0
        size = np.where(
            r <= 5.0,
            _polynomial(_C, near) / _polynomial(_D, near),
            _polynomial(_E, far) / _polynomial(_F, far),
        )
        z[tail] = np.copysign(size, q)
    return z.astype(np.float32)


def _polynomial(coefficients: tuple[float, ...], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Horner's scheme, highest power first."""
    result = coefficients[0] * x + coefficients[1]
    for coefficient in coefficients[2:]:
        result *= x
        result += coefficient
    return result


def _log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithm by exact operations: log x = e log 2 + 2 artanh((m - 1) / (m + 1)).

    Good to 1e-11, far below the transform's own 1e-7.
    """
    mantissa, exponent = np.frexp(x)
    low = mantissa < 0.7071067811865476  # bring the mantissa to [sqrt(1/2), sqrt(2))
    mantissa[low] *= 2.0
    t = (mantissa - 1.0) / (mantissa + 1.0)
    series = _polynomial((1 / 13, 1 / 11, 1 / 9, 1 / 7, 1 / 5, 1 / 3, 1.0), t * t)
    result: NDArray[np.float64] = (exponent - low) * 0.6931471805599453 + 2.0 * t * series
    return result


def lerp(start: Latents, end: Latents, steps: int) -> Latents:
    """The straight line: shape (steps, latent size) from two of (latent size,), ends exact."""
    t = np.linspace(0.0, 1.0, steps)[:, None]
    return _with_ends((1.0 - t) * start + t * end, start, end)


def slerp(start: Latents, end: Latents, steps: int) -> Latents:
    """Along the great circle (Shoemake 1985; White 2016 for latents), ends exact.

    The direction turns evenly and the length changes evenly, so the way stays where N(0, I) has
    its mass. A zero or an opposite end point has no single great circle: then the straight line,
    as also for parallel ones, where both ways are the same.
    """
    a, b = start.astype(np.float64), end.astype(np.float64)
    length_a, length_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if not (length_a > 0.0 and length_b > 0.0):
        return lerp(start, end, steps)
    a, b = a / length_a, b / length_b
    # From the chord and its counterpart: exact also where arccos of the dot product is not.
    angle = 2.0 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b))
    if np.sin(angle) < 1e-6:
        return lerp(start, end, steps)
    t = np.linspace(0.0, 1.0, steps)[:, None]
    direction = (np.sin((1.0 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
    return _with_ends(direction * ((1.0 - t) * length_a + t * length_b), start, end)


def _with_ends(way: NDArray[np.float64], start: Latents, end: Latents) -> Latents:
    with np.errstate(over="ignore"):  # between latents that are huge
        z = way.astype(np.float32)
    z[0], z[-1] = start, end
    return z
