"""Whatever the order of events, every surviving caller gets exactly its own rows."""

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
from latentd.calls.coroutines import CallContext, Cancelled, Future
from latentd.errors import DeadlineExceeded, Overloaded
from tests.support.fake_engine import Harness, answer


def help_lanes_no_more() -> None:
    batcher._helper.batchers = None


# Any interleaving of arrivals, sizes, departures, deadlines and failures. Row k of request n is
# 100 n + k, so that every row says whose it is; a poisoned request has a row 100 n + 99.

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 11)),
        st.tuples(st.just("submit poison"), st.integers(1, 11)),
        st.tuples(st.just("submit with deadline"), st.integers(0, 3)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("pass time"), st.integers(0, 3)),
        st.tuples(st.just("run"), st.just(0)),
    ),
    max_size=40,
)


@dataclass
class Asked:
    rows: list[int]
    caller: CallContext
    reply: Future
    answers: int = 0

    def count(self) -> None:
        self.answers += 1


REFUSED: Future = Future()
REFUSED.set_result((np.empty((0, 1)),))


@settings(max_examples=300, deadline=None)
@given(STEPS, st.integers(1, 6))
def test_every_surviving_caller_gets_exactly_its_own_rows(steps, batch_rows):
    h = Harness(batch_rows)
    promised = (
        enable_inline_execution()
    )  # this thread runs every batch: the order is the steps' own
    asked: list[Asked] = []

    def dead(row: int) -> str:
        caller = asked[row // 100].caller
        return "gone" if caller.cancelled else "late" if caller.deadline <= h.now else ""

    wrong: list[str] = []
    h.engine.check = lambda rows: wrong.extend(map(dead, rows))
    try:
        for step, value in steps:
            if step.startswith("submit"):
                first = 100 * len(asked)
                caller = CallContext(h.now + value if step.endswith("deadline") else math.inf)
                rows = [first + k for k in range(3 if step.endswith("deadline") else value)]
                if step.endswith("poison"):
                    rows[-1] = first + 99
                if caller.deadline <= h.now:
                    with pytest.raises(DeadlineExceeded):
                        h.submit(*rows, caller=caller)
                    continue
                try:
                    reply = h.submit(*rows, caller=caller)
                except Overloaded:
                    assert caller.deadline < math.inf
                    asked.append(Asked([], caller, REFUSED, answers=1))
                    continue
                asked.append(Asked(rows, caller, reply))
                assert asked[-1].reply.then(asked[-1].count)
            elif step == "cancel" and asked:
                asked[value % len(asked)].caller.cancel()
            elif step == "pass time":
                h.now += value
            elif step == "run" and promised:
                promised.pop(0).run_next()
    finally:
        while promised:
            promised.pop(0).run_next()
        help_lanes_no_more()
        h.batcher.close()

    assert not any(wrong), "rows were run for a caller that is gone or late"
    assert (h.queue.rows, h.queue.bytes) == (0, 0)
    assert all(1 <= len(batch) <= batch_rows for batch in h.engine.batches)
    for request in asked:
        assert request.answers == 1, "each is answered, and once"
        try:
            assert answer(request.reply) == [2 * row for row in request.rows]
        except Cancelled:
            assert request.caller.cancelled
        except DeadlineExceeded:
            assert request.caller.deadline <= h.now
        except EngineError:
            assert request.rows[-1] % 100 == 99
