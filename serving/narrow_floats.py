"""Floats of 16 bits on the wire, float32 in memory: float16 and bfloat16.

bfloat16 is the upper half of a float32. numpy has no such dtype: arrays of its bits are uint16.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

LIMITS: Final = {"float16": 65520.0, "bfloat16": float(np.uint32(0x7F7F8000).view(np.float32))}
"""The smallest number that rounds to infinity."""
LARGEST: Final = {"float16": 65504.0, "bfloat16": float(np.uint32(0x7F7F0000).view(np.float32))}
"""The largest finite number."""


def narrowed(values: NDArray[np.float32], name: str) -> NDArray[Any]:
    """Each number rounded to the nearest of the format `name`, of two to the even one.

    As float16, or as the bits of bfloat16. The numbers must be below LIMITS in size.
    """
    if name == "float16":
        return values.astype(np.float16)
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    return rounded.astype(np.uint16)


def widened(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The numbers with these bits of bfloat16."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def too_large(values: NDArray[np.float32], name: str) -> NDArray[np.bool_]:
    """Which rows hold a number beyond the format, shape (rows,)."""
    flat, limit = values.reshape(len(values), -1), LIMITS[name]
    beyond: NDArray[np.bool_] = (flat.max(axis=1) >= limit) | (flat.min(axis=1) <= -limit)
    return beyond
