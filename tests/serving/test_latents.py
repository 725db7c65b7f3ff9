"""Noise is normal, has random access and is bit-identical everywhere; paths end exactly."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from latentd import latents
from latentd.latents import NoiseRange, standard_normal

GOLDEN = "1ca4529b7140d5bccc3f544a1eba9a88dc19394e01bb887cfec5eac5c61feb70"


def test_noise_is_standard_normal_and_independent():
    z = standard_normal([NoiseRange(seed=1, offset=0, rows=50_000)], (20,))
    assert stats.kstest(z[:, :10].ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(np.hstack([z[:-1], z[1:]]).T) - np.eye(40)
    assert np.abs(correlation).max() < 5 / np.sqrt(len(z))


def test_transform_is_the_inverse_normal_cdf_to_float32_precision():
    uniform = np.concatenate(
        [
            np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1], np.uint32),
            np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32),
        ]
    )
    expected = stats.norm.ppf((uniform + 0.5) / 2**32)
    np.testing.assert_allclose(
        latents._inverse_normal_cdf(uniform[None])[0], expected, rtol=3e-7, atol=1e-10
    )


@given(
    seed=st.integers(0, 2**64 - 1),
    offset=st.integers(0, 2**63 - 100),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    size=st.integers(1, 33),
)
def test_any_range_of_rows_can_be_drawn_alone(seed, offset, cuts, size):
    whole = NoiseRange(seed, offset, 40)
    edges = sorted({0, 40, *cuts})
    pieces = [whole.slice(a, b) for a, b in pairwise(edges)]
    expected = standard_normal([whole], (size,)).tobytes()
    assert b"".join(standard_normal([piece], (size,)).tobytes() for piece in pieces) == expected
    assert standard_normal(pieces, (size,)).tobytes() == expected


def test_seeds_streams_and_rows_differ():
    ranges = [
        NoiseRange(0, 0, 1),
        NoiseRange(1, 0, 1),
        NoiseRange(0, 1, 1),
        NoiseRange(0, 0, 1, stream=1),
    ]
    assert len({standard_normal([noise], (8,)).tobytes() for noise in ranges}) == 4


def fingerprint() -> str:
    ranges = [NoiseRange(7, 0, 5000), NoiseRange(2**64 - 1, 2**63 - 1000, 1000, stream=3)]
    return hashlib.sha256(standard_normal(ranges, (21,)).tobytes()).hexdigest()


def test_noise_never_changes():
    """Clients keep seeds. A change breaks their replays and needs a new major version."""
    assert fingerprint() == GOLDEN


@pytest.mark.parametrize("disabled", ["AVX512F AVX512_SKX AVX512_SPR", "AVX2 FMA3 X86_V3 X86_V4"])
def test_noise_is_bit_identical_on_older_processors(disabled):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_latents as t;"
        "print(t.fingerprint())"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, os.path.dirname(__file__)],
        env=os.environ | {"NPY_DISABLE_CPU_FEATURES": disabled},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == fingerprint()


@pytest.mark.parametrize("path", [latents.lerp, latents.slerp])
def test_paths_are_even_and_end_exactly(path):
    a, b = standard_normal([NoiseRange(0, 0, 2)], (12,))
    z = path(a, b, 9)
    assert z[0].tobytes() == a.tobytes()
    assert z[-1].tobytes() == b.tobytes()
    middle = 0.5 * (np.linalg.norm(a) + np.linalg.norm(b))
    if path is latents.slerp:
        assert np.linalg.norm(z[4]) == pytest.approx(middle, rel=1e-5)
        unit = z / np.linalg.norm(z, axis=1, keepdims=True)
        turns = [np.dot(p, q) for p, q in pairwise(unit)]
        np.testing.assert_allclose(turns, turns[0], rtol=1e-5)
    else:
        np.testing.assert_allclose(z[4], (a + b) / 2, rtol=1e-5)


@pytest.mark.parametrize("other", [0.0, -1.0, -2.5, 1.0, 3.0, 1.0 + 1e-7])
def test_slerp_is_a_straight_line_to_zero_opposite_and_parallel_points(other):
    a = standard_normal([NoiseRange(3, 0, 1)], (5,))[0]
    z = latents.slerp(a, a * np.float32(other), 11)
    assert np.isfinite(z).all()
    np.testing.assert_allclose(z, latents.lerp(a, a * np.float32(other), 11), atol=1e-6)
