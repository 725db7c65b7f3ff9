"""The batcher: calls share batches, each gets its own rows, and cancelled rows never run."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from latentd.batching import batcher
from latentd.batching.batcher import Batcher, enable_inline_execution
from latentd.batching.runner import EngineError
from latentd.calls.context import CallContext
from latentd.calls.coroutines import Cancelled, Future
from latentd.errors import DeadlineExceeded, Overloaded, Unavailable
from tests.support.fake_engine import LONG, Harness, rows_of
from tests.support.wait import result_of


def test_rows_share_a_batch_when_queued_while_the_engine_is_busy(h):
    futures = [h.hold(), *(h.submit(n) for n in (1, 2, 3))]
    h.release()
    assert [rows_of(future) for future in futures] == [[0], [2], [4], [6]]
    assert h.engine.batches == [[0], [1, 2, 3]]


def test_large_request_is_concatenated_in_order(h):
    assert rows_of(h.submit(*range(20, 37))) == [2 * n for n in range(20, 37)]
    assert [len(batch) for batch in h.engine.batches] == [4, 4, 4, 4, 1]


def test_request_whose_result_finds_no_memory_fails_alone(h, monkeypatch):
    def concatenate(parts: object) -> None:
        raise MemoryError

    monkeypatch.setattr(batcher, "_concat_parts", concatenate)
    first, large, small = h.hold(), h.submit(*range(20, 26)), h.submit(1)
    h.release()
    assert (rows_of(first), rows_of(small)) == ([0], [2])
    with pytest.raises(MemoryError):
        rows_of(large)
    assert rows_of(h.submit(2)) == [4], "its thread still runs"


def test_failing_request_fails_alone(h):
    futures = [h.hold(), *(h.submit(n) for n in (1, 13, 2, 3))]
    h.release()
    assert [rows_of(futures[n]) for n in (0, 1, 3, 4)] == [[0], [2], [4], [6]]
    with pytest.raises(EngineError) as failure:
        rows_of(futures[2])
    assert isinstance(failure.value.__cause__, RuntimeError)


def test_cancelled_request_is_not_run(h):
    cancelled_call = CallContext()
    first, cancelled, kept = h.hold(), h.submit(1, context=cancelled_call), h.submit(2)
    cancelled_call.cancel()
    assert h.queue.rows == 1, "it leaves the queue at once"
    h.release()
    assert (rows_of(first), rows_of(kept)) == ([0], [4])
    with pytest.raises(Cancelled):
        rows_of(cancelled)
    assert h.engine.ran == [0, 2]
    assert h.count("dropped_total", graph="test", reason="cancelled") == 1


def test_request_of_a_cancelled_call_is_not_run(h):
    cancelled_call = CallContext()
    cancelled_call.cancel()
    first = h.hold()
    with pytest.raises(Cancelled):
        rows_of(h.submit(1, context=cancelled_call))
    h.release()
    rows_of(first)
    assert h.engine.ran == [0]


def test_other_requests_keep_their_rows_when_one_is_cancelled_while_its_batch_runs(h):
    cancelled_call = CallContext()
    first = h.hold(cancelled_call)
    cancelled_call.cancel()
    other = h.submit(5)
    h.release()
    assert rows_of(other) == [10]
    with pytest.raises(Cancelled):
        rows_of(first)


def test_request_fails_without_running_when_its_deadline_passes_in_the_queue(h):
    first, late = h.hold(), h.submit(1, context=CallContext(deadline=h.now + 5))
    h.now += 6
    h.release()
    with pytest.raises(DeadlineExceeded):
        rows_of(late)
    rows_of(first)
    assert h.engine.ran == [0]
    assert h.count("dropped_total", graph="test", reason="expired") == 1


def test_request_is_not_rerun_when_its_deadline_passes_during_bisection(h):
    first = h.hold()
    late, failing = h.submit(1, context=CallContext(deadline=h.now + 5)), h.submit(13)
    h.engine.on_failure = lambda: setattr(h, "now", h.now + 6)
    h.release()
    rows_of(first)
    with pytest.raises(DeadlineExceeded):
        rows_of(late)
    with pytest.raises(EngineError):
        rows_of(failing)
    assert h.engine.batches == [[0], [1, 13], [13]]


def test_request_is_not_rerun_when_cancelled_during_bisection(h):
    cancelled_call = CallContext()
    first, cancelled, failing = h.hold(), h.submit(1, context=cancelled_call), h.submit(13)
    h.engine.on_failure = cancelled_call.cancel
    h.release()
    rows_of(first)
    with pytest.raises(Cancelled):
        rows_of(cancelled)
    with pytest.raises(EngineError):
        rows_of(failing)
    assert h.engine.batches == [[0], [1, 13], [13]]


def test_submit_raises_when_the_deadline_has_passed(h):
    with pytest.raises(DeadlineExceeded):
        h.submit(1, context=CallContext(deadline=h.now - 1))
    assert h.engine.batches == []


def test_full_queue_sheds_and_counts(h):
    h.queue.max_rows = 2
    first, waiting = h.hold(), h.submit(1, 2)
    with pytest.raises(Overloaded):
        h.submit(3)
    h.release()
    assert (rows_of(first), rows_of(waiting)) == ([0], [2, 4])
    assert h.count("shed_total", graph="test", reason="queue_full") == 1


def test_check_raises_what_submit_would_raise_and_runs_nothing(h):
    h.queue.max_rows = 2
    first, waiting = h.hold(), h.submit(1, 2)
    with pytest.raises(Overloaded):
        h.batcher.check(1, 8, CallContext())
    h.queue.max_rows = 1000
    h.batcher.check(1, 8, CallContext())
    h.release()
    assert (rows_of(first), rows_of(waiting)) == ([0], [2, 4])
    assert h.engine.ran == [0, 1, 2]
    assert h.count("shed_total", graph="test", reason="queue_full") == 1


def test_request_is_refused_before_it_runs_when_it_cannot_end_in_time():
    h = Harness(batch_seconds=1.0)
    with pytest.raises(DeadlineExceeded, match=r"8 rows take at least 2.000 s"):
        h.submit(*range(8), context=CallContext(deadline=h.now + 1.9))
    assert rows_of(h.submit(*range(8), context=CallContext(deadline=h.now + 2.1)))[1] == 2
    assert h.engine.ran == list(range(8))
    assert h.count("dropped_total", graph="test", reason="expired") == 1


def test_outputs_of_several_batches_are_not_kept_when_keep_outputs_is_false(h):
    rows = np.arange(8)
    future = h.batcher.submit(rows, len(rows), rows.nbytes, CallContext(), keep_outputs=False)
    assert result_of(future) == ()


def test_close_runs_waiting_rows_and_refuses_new_ones(h):
    first, waiting = h.hold(), h.submit(1)
    closing = threading.Thread(target=h.batcher.close)
    closing.start()
    with h.batcher._changed:
        assert h.batcher._changed.wait_for(lambda: h.batcher._closing, LONG)
    with pytest.raises(Unavailable):
        h.submit(2)
    h.release()
    assert (rows_of(first), rows_of(waiting)) == ([0], [2])
    closing.join()


def test_batch_fails_when_the_engine_loses_rows(h):
    h.engine.loses_rows = True
    with pytest.raises(EngineError):
        rows_of(h.submit(1, 2, 3))


def test_inline_thread_runs_the_short_batches_of_its_own_rows(h):
    batchers: list[Batcher] = []
    runs: list[bool] = []
    futures: list[Future] = []

    def run_inline() -> None:
        batchers.extend(scheduled := enable_inline_execution())
        futures.extend([h.submit(1), h.submit(2)])
        batchers.extend(scheduled)
        scheduled.clear()
        h.engine.running.clear()
        runs.append(h.engine.running.is_set())
        batchers[0].run_next()

    thread = threading.Thread(target=run_inline)
    thread.start()
    thread.join()
    assert batchers == [h.batcher], "scheduled once for both"
    assert runs == [False], "the batcher's own thread left the batch to the inline thread"
    assert [rows_of(future) for future in futures] == [[2], [4]]
    assert h.engine.threads == {thread.ident}
