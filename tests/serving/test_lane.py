"""The lane: every surviving caller gets exactly its own rows, and nothing runs for the dead."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from serving.batching import lane
from serving.batching.lane import Lane, help_lanes
from serving.batching.rowqueue import RowQueue, Share
from serving.batching.runner import EngineError
from serving.batching.tasks import Caller, Cancelled, Reply
from serving.errors import DeadlineExpired, NotReady, Overloaded
from serving.metrics import Metrics

LONG = 20.0  # seconds; nothing here waits so long unless it is broken


class Doubler:
    """An engine that doubles, can be held, fails on 13 and 99 and remembers every row it ran."""

    def __init__(self) -> None:
        self.loses_rows = False
        self.check: Callable[[list[int]], None] = lambda rows: None
        self.on_failure: Callable[[], None] = lambda: None
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, batch: Sequence[Share]) -> tuple[np.ndarray]:
        rows = np.concatenate([share.payload[share.start : share.stop] for share in batch])
        self.batches.append(rows.tolist())
        self.threads.add(threading.get_ident())
        self.running.set()
        assert self.gate.wait(LONG)
        self.check(rows.tolist())
        if 13 in rows or 99 in rows % 100:
            self.on_failure()
            raise RuntimeError("unlucky")
        return (rows[1:] if self.loses_rows else rows * 2,)

    @property
    def ran(self) -> list[int]:
        return [row for batch in self.batches for row in batch]


class Harness:
    """A lane on a clock that stands still, and its engine."""

    def __init__(self, batch_rows: int = 4) -> None:
        self.engine = Doubler()
        self.metrics = Metrics(CollectorRegistry())
        self.queue = RowQueue(batch_rows, 1000, 1 << 20)
        self.now = 1000.0
        self.lane = Lane(
            "test", ("toy", 1), self.queue, self.engine, self.metrics, clock=lambda: self.now
        )

    def submit(self, *rows: int, caller: Caller | None = None) -> Reply:
        array = np.array(rows)
        return self.lane.submit(array, len(array), array.nbytes, caller or Caller())

    def hold(self, caller: Caller | None = None) -> Reply:
        """Occupy the engine with the row 0 until `release`."""
        self.engine.gate.clear()
        first = self.submit(0, caller=caller)
        assert self.engine.running.wait(LONG)
        return first

    def release(self) -> None:
        self.engine.gate.set()

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"latentd_{name}", labels) or 0.0


def answer(reply: Reply) -> list[int]:
    """Wait for a reply's rows, or raise what it failed with."""
    answered = threading.Event()
    if reply.then(answered.set):
        assert answered.wait(LONG)
    try:
        next(reply.__await__())
    except StopIteration as result:
        (rows,) = result.value
        return rows.tolist()
    raise AssertionError("an answered reply waited")


def help_lanes_no_more() -> None:
    lane._helper.lanes = None


@pytest.fixture
def h() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.release()
    harness.lane.close()
    assert (harness.queue.rows, harness.queue.bytes) == (0, 0)


def test_rows_that_come_while_the_engine_is_busy_share_a_batch(h):
    replies = [h.hold(), *(h.submit(n) for n in (1, 2, 3))]
    h.release()
    assert [answer(reply) for reply in replies] == [[0], [2], [4], [6]]
    assert h.engine.batches == [[0], [1, 2, 3]]


def test_a_large_request_is_rejoined_in_order(h):
    assert answer(h.submit(*range(20, 37))) == [2 * n for n in range(20, 37)]
    assert [len(batch) for batch in h.engine.batches] == [4, 4, 4, 4, 1]


def test_a_poisoned_request_fails_alone(h):
    replies = [h.hold(), *(h.submit(n) for n in (1, 13, 2, 3))]
    h.release()
    assert [answer(replies[n]) for n in (0, 1, 3, 4)] == [[0], [2], [4], [6]]
    with pytest.raises(EngineError) as failure:
        answer(replies[2])
    assert isinstance(failure.value.__cause__, RuntimeError)


def test_a_cancelled_request_is_not_run(h):
    gone = Caller()
    first, cancelled, kept = h.hold(), h.submit(1, caller=gone), h.submit(2)
    gone.cancel()
    assert h.queue.rows == 1, "it leaves the queue at once"
    h.release()
    assert (answer(first), answer(kept)) == ([0], [4])
    with pytest.raises(Cancelled):
        answer(cancelled)
    assert h.engine.ran == [0, 2]
    assert h.count("dropped_total", lane="test", reason="cancelled") == 1


def test_a_caller_that_has_gone_already_is_not_run(h):
    gone = Caller()
    gone.cancel()
    first = h.hold()
    with pytest.raises(Cancelled):
        answer(h.submit(1, caller=gone))
    h.release()
    answer(first)
    assert h.engine.ran == [0]


def test_a_request_cancelled_in_the_middle_of_its_batch_leaves_its_mates_their_rows(h):
    gone = Caller()
    first = h.hold(gone)
    gone.cancel()
    mate = h.submit(5)
    h.release()
    assert answer(mate) == [10]
    with pytest.raises(Cancelled):
        answer(first)


def test_a_deadline_that_passes_in_the_queue_is_answered_and_not_run(h):
    first, late = h.hold(), h.submit(1, caller=Caller(deadline=h.now + 5))
    h.now += 6
    h.release()
    with pytest.raises(DeadlineExpired):
        answer(late)
    answer(first)
    assert h.engine.ran == [0]
    assert h.count("dropped_total", lane="test", reason="expired") == 1


def test_a_deadline_that_passes_between_two_tries_of_a_batch_is_not_run_again(h):
    first = h.hold()
    late, poisoned = h.submit(1, caller=Caller(deadline=h.now + 5)), h.submit(13)
    h.engine.on_failure = lambda: setattr(h, "now", h.now + 6)
    h.release()
    answer(first)
    with pytest.raises(DeadlineExpired):
        answer(late)
    with pytest.raises(EngineError):
        answer(poisoned)
    assert h.engine.batches == [[0], [1, 13], [13]]


def test_a_caller_that_goes_between_two_tries_of_a_batch_is_not_run_again(h):
    gone = Caller()
    first, cancelled, poisoned = h.hold(), h.submit(1, caller=gone), h.submit(13)
    h.engine.on_failure = gone.cancel
    h.release()
    answer(first)
    with pytest.raises(Cancelled):
        answer(cancelled)
    with pytest.raises(EngineError):
        answer(poisoned)
    assert h.engine.batches == [[0], [1, 13], [13]]


def test_a_deadline_already_passed_is_refused_at_the_door(h):
    with pytest.raises(DeadlineExpired):
        h.submit(1, caller=Caller(deadline=h.now - 1))
    assert h.engine.batches == []


def test_a_full_queue_sheds_and_counts(h):
    h.queue.max_rows = 2
    first, waiting = h.hold(), h.submit(1, 2)
    with pytest.raises(Overloaded):
        h.submit(3)
    h.release()
    assert (answer(first), answer(waiting)) == ([0], [2, 4])
    assert h.count("shed_total", lane="test", reason="queue_full") == 1


def test_closing_finishes_what_waits_and_refuses_the_rest(h):
    first, waiting = h.hold(), h.submit(1)
    closing = threading.Thread(target=h.lane.close)
    closing.start()
    with h.lane._changed:
        assert h.lane._changed.wait_for(lambda: h.lane._closing, LONG)
    with pytest.raises(NotReady):
        h.submit(2)
    h.release()
    assert (answer(first), answer(waiting)) == ([0], [2])
    closing.join()


def test_an_engine_that_loses_rows_fails_the_batch_instead_of_shifting_answers(h):
    h.engine.loses_rows = True
    with pytest.raises(EngineError):
        answer(h.submit(1, 2, 3))


def test_a_thread_that_helps_runs_the_short_batches_of_its_own_rows(h):
    lanes: list[Lane] = []
    runs: list[bool] = []
    replies: list[Reply] = []

    def help_out() -> None:
        lanes.extend(promised := help_lanes())
        replies.extend([h.submit(1), h.submit(2)])
        lanes.extend(promised)
        promised.clear()
        h.engine.running.clear()
        runs.append(h.engine.running.is_set())
        lanes[0].run_next()

    helper = threading.Thread(target=help_out)
    helper.start()
    helper.join()
    assert lanes == [h.lane], "asked once for both"
    assert runs == [False], "the lane's own thread did not take what was promised"
    assert [answer(reply) for reply in replies] == [[2], [4]]
    assert h.engine.threads == {helper.ident}


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
    caller: Caller
    reply: Reply
    answers: int = 0

    def count(self) -> None:
        self.answers += 1


REFUSED: Reply = Reply()
REFUSED.resolve((np.empty((0, 1)),))


@settings(max_examples=300, deadline=None)
@given(STEPS, st.integers(1, 6))
def test_every_surviving_caller_gets_exactly_its_own_rows(steps, batch_rows):
    h = Harness(batch_rows)
    promised = help_lanes()  # this thread runs every batch: the order is the steps' own
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
                caller = Caller(h.now + value if step.endswith("deadline") else math.inf)
                rows = [first + k for k in range(3 if step.endswith("deadline") else value)]
                if step.endswith("poison"):
                    rows[-1] = first + 99
                if caller.deadline <= h.now:
                    with pytest.raises(DeadlineExpired):
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
        h.lane.close()

    assert not any(wrong), "rows were run for a caller that is gone or late"
    assert (h.queue.rows, h.queue.bytes) == (0, 0)
    assert all(1 <= len(batch) <= batch_rows for batch in h.engine.batches)
    for request in asked:
        assert request.answers == 1, "each is answered, and once"
        try:
            assert answer(request.reply) == [2 * row for row in request.rows]
        except Cancelled:
            assert request.caller.cancelled
        except DeadlineExpired:
            assert request.caller.deadline <= h.now
        except EngineError:
            assert request.rows[-1] % 100 == 99
