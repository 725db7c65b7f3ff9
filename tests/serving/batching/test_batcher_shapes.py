"""The batcher: calls share batches only with calls of the same shape."""

from __future__ import annotations

import numpy as np
import pytest

from latentd.batching.shape_queues import MAX_SHAPES
from latentd.calls.context import CallContext
from latentd.calls.coroutines import Future
from latentd.errors import Overloaded
from tests.support.fake_engine import Harness, rows_of


def submit(h: Harness, *rows: int, shape: tuple[int, ...], scale: int = 1) -> Future:
    array = np.array(rows)
    return h.batcher.submit(
        array, len(array), array.nbytes, CallContext(), shape=shape, scale=scale
    )


def test_rows_share_batches_with_rows_of_their_shape(h):
    first = h.hold()
    futures = [submit(h, n, shape=(8 * (n % 2 + 1), 8)) for n in (1, 2, 3, 4)]
    h.release()
    assert [rows_of(future) for future in (first, *futures)] == [[0], [2], [4], [6], [8]]
    assert h.engine.batches == [[0], [1, 3], [2, 4]]


def test_rows_of_a_large_scale_run_in_several_batches_that_count_as_full(h):
    before = h.count("batch_fill_ratio_sum", graph="test")
    assert rows_of(submit(h, 1, 2, 3, shape=(32, 32), scale=2)) == [2, 4, 6]
    assert rows_of(submit(h, 4, 5, shape=(64, 64), scale=9)) == [8, 10]
    assert h.engine.batches == [[1, 2], [3], [4], [5]]
    assert h.count("batch_fill_ratio_sum", graph="test") - before == 1.0 + 0.5 + 1.0 + 1.0


def test_one_shape_too_many_is_refused_and_counted(h):
    first = h.hold()
    waiting = [submit(h, n, shape=(n,)) for n in range(20, 20 + MAX_SHAPES)]
    with pytest.raises(Overloaded) as refusal:
        submit(h, 1, shape=(1,))
    assert refusal.value.reason == "shapes"
    with pytest.raises(Overloaded):
        h.batcher.check(1, 8, CallContext(), shape=(1,))
    assert h.count("shed_total", graph="test", reason="shapes") == 2
    h.batcher.check(1, 8, CallContext(), shape=(20,))
    h.release()
    assert [rows_of(future) for future in (first, *waiting)] == [
        [0],
        *([2 * n] for n in range(20, 52)),
    ]


def test_check_counts_the_scale(h):
    h.queue.max_rows = 6
    first, waiting = h.hold(), h.submit(1, 2, 3, 4)
    h.batcher.check(1, 8, CallContext(), shape=(32, 32))
    with pytest.raises(Overloaded):
        h.batcher.check(1, 8, CallContext(), shape=(32, 32), scale=4)
    h.release()
    assert (rows_of(first), rows_of(waiting)) == ([0], [2, 4, 6, 8])
