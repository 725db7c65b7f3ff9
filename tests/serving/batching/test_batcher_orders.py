"""In any order of events, every call that is not cancelled gets exactly its own rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentd.batching import batcher
from latentd.batching.batcher import enable_inline_execution
from latentd.batching.runner import EngineError
from latentd.calls.context import CallContext
from latentd.calls.coroutines import Cancelled, Future
from latentd.errors import DeadlineExceeded, Overloaded
from tests.support.fake_engine import Harness, rows_of


def disable_inline_execution() -> None:
    batcher._inline.scheduled = None


# Any interleaving of arrivals, sizes, cancellations, deadlines and failures. Row k of request n is
# 100 n + k, so each row shows its request; a failing request has a row 100 n + 99.

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 11)),
        st.tuples(st.just("submit failing"), st.integers(1, 11)),
        st.tuples(st.just("submit with deadline"), st.integers(0, 3)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("pass time"), st.integers(0, 3)),
        st.tuples(st.just("run"), st.just(0)),
    ),
    max_size=40,
)


@dataclass
class Request:
    rows: list[int]
    context: CallContext
    future: Future
    results: int = 0

    def count(self) -> None:
        self.results += 1


REFUSED: Future = Future()
REFUSED.set_result((np.empty((0, 1)),))


@settings(max_examples=300, deadline=None)
@given(STEPS, st.integers(1, 6))
def test_every_call_gets_exactly_its_own_rows(steps, batch_rows):
    h = Harness(batch_rows)
    # This thread runs every batch: the steps alone decide the order.
    scheduled = enable_inline_execution()
    requests: list[Request] = []

    def unwanted(row: int) -> str:
        context = requests[row // 100].context
        return "cancelled" if context.cancelled else "late" if context.deadline <= h.now else ""

    wrong: list[str] = []
    h.engine.check = lambda rows: wrong.extend(map(unwanted, rows))
    try:
        for step, value in steps:
            if step.startswith("submit"):
                first = 100 * len(requests)
                context = CallContext(h.now + value if step.endswith("deadline") else math.inf)
                rows = [first + k for k in range(3 if step.endswith("deadline") else value)]
                if step.endswith("failing"):
                    rows[-1] = first + 99
                if context.deadline <= h.now:
                    with pytest.raises(DeadlineExceeded):
                        h.submit(*rows, context=context)
                    continue
                try:
                    future = h.submit(*rows, context=context)
                except Overloaded:
                    assert context.deadline < math.inf
                    requests.append(Request([], context, REFUSED, results=1))
                    continue
                requests.append(Request(rows, context, future))
                assert requests[-1].future.add_done_callback(requests[-1].count)
            elif step == "cancel" and requests:
                requests[value % len(requests)].context.cancel()
            elif step == "pass time":
                h.now += value
            elif step == "run" and scheduled:
                scheduled.pop(0).run_next()
    finally:
        while scheduled:
            scheduled.pop(0).run_next()
        disable_inline_execution()
        h.batcher.close()

    assert not any(wrong), "rows ran for a call that is cancelled or late"
    assert (h.queue.rows, h.queue.bytes) == (0, 0)
    assert all(1 <= len(batch) <= batch_rows for batch in h.engine.batches)
    for request in requests:
        assert request.results == 1, "each has exactly one result"
        try:
            assert rows_of(request.future) == [2 * row for row in request.rows]
        except Cancelled:
            assert request.context.cancelled
        except DeadlineExceeded:
            assert request.context.deadline <= h.now
        except EngineError:
            assert request.rows[-1] % 100 == 99
