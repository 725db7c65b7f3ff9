"""The lane: callers share batches, each gets its own rows, and nothing runs for the dead."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from latentd.batching.batcher import Batcher, enable_inline_execution
from latentd.batching.runner import EngineError
from latentd.calls.coroutines import CallContext, Cancelled, Future
from latentd.errors import DeadlineExceeded, Overloaded, Unavailable
from tests.support.fake_engine import LONG, Harness, answer
from tests.support.wait import awaited


@pytest.fixture
def h() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.release()
    harness.batcher.close()
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
    gone = CallContext()
    first, cancelled, kept = h.hold(), h.submit(1, caller=gone), h.submit(2)
    gone.cancel()
    assert h.queue.rows == 1, "it leaves the queue at once"
    h.release()
    assert (answer(first), answer(kept)) == ([0], [4])
    with pytest.raises(Cancelled):
        answer(cancelled)
    assert h.engine.ran == [0, 2]
    assert h.count("dropped_total", graph="test", reason="cancelled") == 1


def test_a_caller_that_has_gone_already_is_not_run(h):
    gone = CallContext()
    gone.cancel()
    first = h.hold()
    with pytest.raises(Cancelled):
        answer(h.submit(1, caller=gone))
    h.release()
    answer(first)
    assert h.engine.ran == [0]


def test_a_request_cancelled_in_the_middle_of_its_batch_leaves_its_mates_their_rows(h):
    gone = CallContext()
    first = h.hold(gone)
    gone.cancel()
    mate = h.submit(5)
    h.release()
    assert answer(mate) == [10]
    with pytest.raises(Cancelled):
        answer(first)


def test_a_deadline_that_passes_in_the_queue_is_answered_and_not_run(h):
    first, late = h.hold(), h.submit(1, caller=CallContext(deadline=h.now + 5))
    h.now += 6
    h.release()
    with pytest.raises(DeadlineExceeded):
        answer(late)
    answer(first)
    assert h.engine.ran == [0]
    assert h.count("dropped_total", graph="test", reason="expired") == 1


def test_a_deadline_that_passes_between_two_tries_of_a_batch_is_not_run_again(h):
    first = h.hold()
    late, poisoned = h.submit(1, caller=CallContext(deadline=h.now + 5)), h.submit(13)
    h.engine.on_failure = lambda: setattr(h, "now", h.now + 6)
    h.release()
    answer(first)
    with pytest.raises(DeadlineExceeded):
        answer(late)
    with pytest.raises(EngineError):
        answer(poisoned)
    assert h.engine.batches == [[0], [1, 13], [13]]


def test_a_caller_that_goes_between_two_tries_of_a_batch_is_not_run_again(h):
    gone = CallContext()
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
    with pytest.raises(DeadlineExceeded):
        h.submit(1, caller=CallContext(deadline=h.now - 1))
    assert h.engine.batches == []


def test_a_full_queue_sheds_and_counts(h):
    h.queue.max_rows = 2
    first, waiting = h.hold(), h.submit(1, 2)
    with pytest.raises(Overloaded):
        h.submit(3)
    h.release()
    assert (answer(first), answer(waiting)) == ([0], [2, 4])
    assert h.count("shed_total", graph="test", reason="queue_full") == 1


def test_a_check_refuses_what_submit_would_refuse_and_runs_nothing(h):
    h.queue.max_rows = 2
    first, waiting = h.hold(), h.submit(1, 2)
    with pytest.raises(Overloaded):
        h.batcher.check(1, 8, CallContext())
    h.queue.max_rows = 1000
    h.batcher.check(1, 8, CallContext())
    h.release()
    assert (answer(first), answer(waiting)) == ([0], [2, 4])
    assert h.engine.ran == [0, 1, 2]
    assert h.count("shed_total", graph="test", reason="queue_full") == 1


def test_rows_that_cannot_all_run_in_time_are_refused_before_any_runs():
    h = Harness(batch_seconds=1.0)
    with pytest.raises(DeadlineExceeded, match=r"8 rows take 2.000 s at least"):
        h.submit(*range(8), caller=CallContext(deadline=h.now + 1.9))
    assert answer(h.submit(*range(8), caller=CallContext(deadline=h.now + 2.1)))[1] == 2
    assert h.engine.ran == list(range(8))
    assert h.count("dropped_total", graph="test", reason="expired") == 1


def test_outputs_of_several_batches_that_nobody_wants_are_not_kept(h):
    rows = np.arange(8)
    assert awaited(h.batcher.submit(rows, len(rows), rows.nbytes, CallContext(), keep=False)) == ()


def test_closing_finishes_what_waits_and_refuses_the_rest(h):
    first, waiting = h.hold(), h.submit(1)
    closing = threading.Thread(target=h.batcher.close)
    closing.start()
    with h.batcher._changed:
        assert h.batcher._changed.wait_for(lambda: h.batcher._closing, LONG)
    with pytest.raises(Unavailable):
        h.submit(2)
    h.release()
    assert (answer(first), answer(waiting)) == ([0], [2])
    closing.join()


def test_an_engine_that_loses_rows_fails_the_batch_instead_of_shifting_answers(h):
    h.engine.loses_rows = True
    with pytest.raises(EngineError):
        answer(h.submit(1, 2, 3))


def test_a_thread_that_helps_runs_the_short_batches_of_its_own_rows(h):
    batchers: list[Batcher] = []
    runs: list[bool] = []
    replies: list[Future] = []

    def help_out() -> None:
        batchers.extend(promised := enable_inline_execution())
        replies.extend([h.submit(1), h.submit(2)])
        batchers.extend(promised)
        promised.clear()
        h.engine.running.clear()
        runs.append(h.engine.running.is_set())
        batchers[0].run_next()

    helper = threading.Thread(target=help_out)
    helper.start()
    helper.join()
    assert batchers == [h.batcher], "asked once for both"
    assert runs == [False], "the lane's own thread did not take what was promised"
    assert [answer(reply) for reply in replies] == [[2], [4]]
    assert h.engine.threads == {helper.ident}
