"""Latents: seeded normal noise with random access, and interpolation between two latents.

Row i of the noise is a pure function of (seed, stream, i). Each row has a fixed number of blocks of
the counter-based generator Philox 4x64 (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3"). So any range of rows can be drawn alone, in any order, on any machine.

All machines draw the same bits. numpy's log, exp and cos choose their code by the CPU's vector
instructions and differ in the last place between machines. Additions, multiplications, divisions
and square roots are exact to IEEE 754 everywhere. The transform to normals uses only those.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Latents = NDArray[np.float32]
"""float32, shape (rows, *shape of one latent)."""

PRIOR: Final = 0
"""The stream of Sample: z ~ N(0, I)."""
POSTERIOR: Final = 1
"""The first stream of samples from a posterior; sample k of a row uses POSTERIOR + k."""

_UNIFORM: Final = 1 << 63
"""This bit tells the streams of uniform numbers from those of normal ones."""
_STEP: Final = np.float32(2.0**-23)

_BLOCK: Final = 8  # normals from one Philox block: four words of 64 bits, two normals a word


class NoiseRange(NamedTuple):
    """`rows` rows of standard normal noise, not drawn yet."""

    seed: int  # 0 .. 2^64 - 1
    offset: int  # index of the first row; offset + rows <= 2^64
    rows: int
    stream: int = PRIOR

    def slice(self, start: int, stop: int) -> NoiseRange:
        """Rows start..stop of this range."""
        if stop - start == self.rows:
            return self
        return NoiseRange(self.seed, self.offset + start, stop - start, self.stream)


class NoiseRows(NamedTuple):
    """Rows of standard normal noise, each with its own seed and index, not drawn yet."""

    seeds: NDArray[np.uint64]  # (rows,)
    indices: NDArray[np.uint64]  # (rows,)
    stream: int = PRIOR

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.seeds)

    def slice(self, start: int, stop: int) -> NoiseRows:
        """As NoiseRange.slice."""
        return NoiseRows(self.seeds[start:stop], self.indices[start:stop], self.stream)

    def ranges(self) -> list[NoiseRange]:
        """The same rows, each as a range."""
        rows = zip(self.seeds.tolist(), self.indices.tolist(), strict=True)
        return [NoiseRange(seed, index, 1, self.stream) for seed, index in rows]


Noise = NoiseRange | NoiseRows


def standard_normal(ranges: Sequence[Noise], shape: tuple[int, ...]) -> Latents:
    """The noise of all `ranges`, one below the other, in one vectorized pass.

    Returns float32 of shape (sum of rows, *shape). A row's numbers depend on its range and on how
    many they are, not on the shape.
    """
    size = math.prod(shape)
    blocks = -(-size // _BLOCK)
    words = [_philox_words(noise, blocks) for noise in ranges]
    raw = words[0] if len(words) == 1 else np.concatenate(words)
    uniform = raw.view("<u4").reshape(-1, blocks * _BLOCK)[:, :size]
    return _inverse_normal_cdf(uniform).reshape(-1, *shape)


def uniform(ranges: Sequence[Noise], size: int) -> NDArray[np.float32]:
    """Uniform numbers between 0 and 1, never either, of all `ranges`: float32 (sum of rows, size).

    They are from streams of their own, so a row's latent and its uniform numbers are independent.
    23 bits of each word are used: float32 has the middle of each step exactly, and more would round
    to 1.
    """
    blocks = -(-size // _BLOCK)
    streams = (noise._replace(stream=_UNIFORM | noise.stream) for noise in ranges)
    raw = np.concatenate([_philox_words(noise, blocks) for noise in streams])
    words = raw.view("<u4").reshape(-1, blocks * _BLOCK)[:, :size]
    numbers: NDArray[np.float32] = ((words >> 9).astype(np.float32) + np.float32(0.5)) * _STEP
    return numbers


class _Generator(threading.local):
    """One Philox per thread, moved to each range's start: creating one costs ten times more."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(key=0)
        self.counter = [0, 0, 0, 0]  # words of 64 bits; the setter reads lists faster than arrays
        self.key = [0, 0]
        self.state: Any = {
            "bit_generator": "Philox",
            "state": {"counter": self.counter, "key": self.key},
            "buffer": [0, 0, 0, 0],
            "buffer_pos": 4,  # the buffer is used up: start with a new block
            "has_uint32": 0,
            "uinteger": 0,
        }


_generator: Final = _Generator()


def _philox_words(noise: Noise, blocks: int) -> NDArray[np.uint64]:
    if isinstance(noise, NoiseRows):
        return np.concatenate([_philox_words(row, blocks) for row in noise.ranges()])
    generator = _generator
    first = noise.offset * blocks
    generator.counter[0], generator.counter[1] = first & 0xFFFF_FFFF_FFFF_FFFF, first >> 64
    generator.key[0], generator.key[1] = noise.seed, noise.stream
    generator.philox.state = generator.state
    words: NDArray[np.uint64] = generator.philox.random_raw(noise.rows * blocks * 4)
    return words.astype("<u8", copy=False)


# Wichura (1988), "Algorithm AS 241: The percentage points of the normal distribution", PPND7:
# relative error about 1e-7, the precision of float32. Evaluated in float64. Its third pair of
# polynomials is for probabilities below 1e-11, which numbers of 32 bits do not have.
_CENTER: Final = 0.425
_A: Final = (5.9109374720e01, 1.5929113202e02, 5.0434271938e01, 3.3871327179e00)
_B: Final = (6.7187563600e01, 7.8757757664e01, 1.7895169469e01, 1.0)
_C: Final = (1.7023821103e-01, 1.3067284816e00, 2.7568153900e00, 1.4234372777e00)
_D: Final = (1.2021132975e-01, 7.3700164250e-01, 1.0)
_A_AND_B: Final = tuple(np.transpose([_A, _B])[:, :, None])  # two polynomials by one numpy call

_FEW: Final = 8
"""So many numbers take less time one by one than in numpy."""


def _inverse_normal_cdf(uniform: NDArray[np.uint32]) -> Latents:
    """The inverse normal distribution function at (uniform + 1/2) / 2^32: within +-6.4."""
    q = (uniform.ravel().astype(np.float64) + (0.5 - 2.0**31)) * 2.0**-32  # exact; |q| < 1/2
    r = _CENTER * _CENTER - q * q
    numerator, denominator = _polynomial(_A_AND_B, r)
    z = q * (numerator / denominator)
    tail = np.flatnonzero(r < 0)
    if tail.size > _FEW:
        z[tail] = _tail_quantile(q[tail], np)
    elif tail.size:
        z[tail] = [_tail_quantile(one, math) for one in q[tail].tolist()]
    result: Latents = z.astype(np.float32).reshape(uniform.shape)
    return result


def _tail_quantile(q: Any, xp: Any) -> Any:
    """The inverse normal distribution function at q + 1/2 in the tails, |q| > 0.425.

    xp: numpy, of an array; or math, of a number. Both compute the same bits: all that is used here
        is exact to IEEE 754.
    """
    r = xp.sqrt(-_log(0.5 - abs(q), xp)) - 1.6
    return xp.copysign(_polynomial(_C, r) / _polynomial(_D, r), q)


def _polynomial(coefficients: tuple[Any, ...], x: Any) -> Any:
    """Horner's scheme, highest power first; of a number or an array."""
    result = coefficients[0] * x + coefficients[1]
    for coefficient in coefficients[2:]:
        result *= x
        result += coefficient
    return result


def _log(x: Any, xp: Any) -> Any:
    """Natural logarithm by exact operations: log x = e log 2 + 2 artanh((m - 1) / (m + 1)).

    Its error is about 1e-11, far below the transform's own 1e-7. xp: as of _tail_quantile
    """
    mantissa, exponent = xp.frexp(x)
    low = mantissa < 0.7071067811865476
    mantissa = mantissa * (1.0 + low)  # bring the mantissa to [sqrt(1/2), sqrt(2))
    t = (mantissa - 1.0) / (mantissa + 1.0)
    series = _polynomial((1 / 13, 1 / 11, 1 / 9, 1 / 7, 1 / 5, 1 / 3, 1.0), t * t)
    return (exponent - low) * 0.6931471805599453 + 2.0 * t * series


def lerp(start: Latents, end: Latents, steps: int) -> Latents:
    """The straight line from start to end, both exact: shape (steps, *shape) from two latents."""
    t = _steps(steps, start)
    return _pin_ends((1.0 - t) * start + t * end, start, end)


def slerp(start: Latents, end: Latents, steps: int) -> Latents:
    """The great circle from start to end, both exact (Shoemake 1985; White 2016 for latents).

    The direction and the length change evenly, so the path stays where N(0, I) has its mass. If an
    end is zero or the ends are opposite, there is no single great circle: the result is the
    straight line. So it is for parallel ends, where both paths are the same.
    """
    a, b = start.astype(np.float64), end.astype(np.float64)
    length_a, length_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if not (length_a > 0.0 and length_b > 0.0):
        return lerp(start, end, steps)
    a, b = a / length_a, b / length_b
    # From the chord and its counterpart: precise for all angles, unlike arccos of the dot product.
    angle = 2.0 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b))
    if np.sin(angle) < 1e-6:
        return lerp(start, end, steps)
    t = _steps(steps, start)
    direction = (np.sin((1.0 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
    return _pin_ends(direction * ((1.0 - t) * length_a + t * length_b), start, end)


def _steps(steps: int, latent: Latents) -> NDArray[np.float64]:
    """0 to 1, to be multiplied with a latent: shape (steps, 1, ..., 1)."""
    return np.linspace(0.0, 1.0, steps).reshape(-1, *[1] * latent.ndim)


def _pin_ends(path: NDArray[np.float64], start: Latents, end: Latents) -> Latents:
    with np.errstate(over="ignore"):  # between huge latents
        z = path.astype(np.float32)
    z[0], z[-1] = start, end
    return z
