"""Floats of 16 bits: rounded to the nearest, of two to the even one; too large ones are found."""

from __future__ import annotations

import numpy as np
import pytest

from latentd import narrow_floats

TIES = {  # bits of a float32 -> bits of the bfloat16
    0x3F800000: 0x3F80,
    0x3F808000: 0x3F80,  # halfway: the even one is below
    0x3F808001: 0x3F81,
    0x3F818000: 0x3F82,  # halfway: the even one is above
    0x3F817FFF: 0x3F81,
    0xBF818000: 0xBF82,
    0x3FFFFFFF: 0x4000,  # the exponent grows
    0x00000001: 0x0000,
    0x00018000: 0x0002,  # subnormal
    0x80000000: 0x8000,
    0x7F7F7FFF: 0x7F7F,  # the largest that remains finite
}


def test_bfloat16_is_the_nearest_and_of_two_the_even_one():
    values = np.array(list(TIES), np.uint32).view(np.float32)
    bits = narrow_floats.narrowed(values, "bfloat16")
    assert [hex(value) for value in bits] == [hex(value) for value in TIES.values()]


def test_bfloat16_keeps_any_shape_and_order_of_axes():
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)
    bits = narrow_floats.narrowed(values, "bfloat16")
    np.testing.assert_array_equal(narrow_floats.widened(bits), values)


def test_every_bfloat16_survives():
    bits = np.arange(1 << 16, dtype=np.uint16)
    finite = np.isfinite(narrow_floats.widened(bits))
    values = narrow_floats.widened(bits[finite])
    np.testing.assert_array_equal(narrow_floats.narrowed(values, "bfloat16"), bits[finite])


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_numbers_that_would_become_infinite_are_too_large(name):
    limit = np.float32(narrow_floats.LIMITS[name])
    below = np.nextafter(limit, np.float32(0))
    rows = np.array([[0, below], [limit, 0], [-below, 0], [0, -limit]], np.float32)
    assert narrow_floats.too_large(rows, name).tolist() == [False, True, False, True]
    narrowed = narrow_floats.narrowed(np.array([below, -below]), name)
    wide = narrowed if name == "float16" else narrow_floats.widened(narrowed)
    largest = narrow_floats.LARGEST[name]
    np.testing.assert_array_equal(wide.astype(np.float32), np.float32([largest, -largest]))
