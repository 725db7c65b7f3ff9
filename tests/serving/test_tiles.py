"""Tiles: every row is split into parts of one size, and is the same when put together again."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from latentd.bundle import Tile
from latentd.shapes import Axis, Shape
from latentd.tiles import TilePlan, spans

AXES = {name: Axis(name, multiple_of=8, min=16, max=4096, default=64) for name in ("h", "w")}
X = Shape.parse(["h", "w", 3])
Z = Shape.parse([4, "h/8", "w/8"])
LENGTHS = [(72, 72), (64, 200), (200, 64), (136, 264), (32, 512)]


def tile(overlap: int = 16, exact: bool = True, size: int = 64) -> Tile:
    measured = {"max_abs_difference": 0.0} if exact else {"decibels": 30.0}
    return Tile({"h": size, "w": size}, {"h": overlap, "w": overlap}, exact, **measured)


def plan(lengths: tuple[int, int], of: Tile) -> TilePlan:
    return TilePlan.of(of, AXES, dict(zip(AXES, lengths, strict=True)))


def test_parts_of_an_axis_cover_it_with_enough_of_their_neighbors():
    chance = random.Random(0)
    for _ in range(2000):
        multiple = chance.choice([1, 8, 16])
        size = chance.randint(2, 20) * multiple
        overlap = chance.randint(0, size // multiple // 2) * multiple
        length = chance.randint(size // multiple, 200) * multiple
        parts = spans(length, size, overlap, multiple)
        assert all(part.stop - part.start == size for part in parts)
        assert all(n % multiple == 0 for part in parts for n in (part.start, part.first))
        assert (parts[0].start, parts[0].first) == (0, 0)
        assert (parts[-1].stop, parts[-1].last) == (length, length)
        for a, b in itertools.pairwise(parts):
            assert a.last == b.first
            assert a.after == b.before == a.stop - b.start >= overlap
            context = overlap // 2 // multiple * multiple
            assert b.first - b.start >= context
            assert a.stop - a.last >= context
        assert len(parts) == 1 + -(-(length - size) // (size - overlap))


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("shape", [X, Z], ids=str)
def test_split_rows_are_the_same_when_assembled(lengths, shape):
    rows = np.random.default_rng(0).integers(
        0, 256, (2, *shape.at(dict(zip(AXES, lengths, strict=True)))), np.uint8
    )
    exact, blended = plan(lengths, tile()), plan(lengths, tile(exact=False))
    tiles = exact.split(rows, shape)
    assert len(tiles) == 2 * exact.count > 2
    assert tiles[1:3].shape == (2, *shape.at(exact.size))
    np.testing.assert_array_equal(exact.assemble(tiles[: len(tiles)], shape), rows)
    np.testing.assert_array_equal(blended.assemble(tiles[:], shape), rows)
    floats = rows.astype(np.float32)
    again = blended.assemble(blended.split(floats, shape)[:], shape)
    assert again.dtype == np.float32
    np.testing.assert_allclose(again, floats, rtol=1e-5)


def test_tiles_are_no_larger_than_the_row():
    assert plan((32, 512), tile()).size == {"h": 32, "w": 64}
    assert plan((64, 64), tile()).count == 1
    assert plan((16, 72), tile(overlap=16)).count == 2


def box(rows: np.ndarray, radius: int) -> np.ndarray:
    """Sums over squares, with zeros around each row: what a convolution sees."""
    padded = np.pad(rows, ((0, 0), (radius, radius), (radius, radius), (0, 0)))
    size = 2 * radius + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return windows.sum(axis=(-2, -1), dtype=np.float32)


@pytest.mark.parametrize(("radius", "equal"), [(8, True), (9, False)])
def test_result_is_exact_if_the_overlap_is_twice_what_a_net_sees(radius, equal):
    rows = np.random.default_rng(0).integers(0, 9, (2, 136, 200, 3)).astype(np.float32)
    parts = plan((136, 200), tile(overlap=16))
    tiled = parts.assemble(box(parts.split(rows, X)[:], radius), X)
    assert np.array_equal(tiled, box(rows, radius)) is equal


def test_blended_parts_change_over_gradually():
    parts = plan((64, 112), tile(overlap=16, exact=False))
    assert parts.count == 2
    ones = np.zeros((2, 64, 64, 3), np.float32)
    ones[1] = 1
    along = parts.assemble(ones, X)[0, 0, :, 0]
    np.testing.assert_allclose(along[48:64], (np.arange(16) + 0.5) / 16, atol=1e-6)
    assert (along[:48] == 0).all()
    np.testing.assert_allclose(along[64:], 1)
