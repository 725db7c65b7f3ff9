"""A batcher with two threads: while a batch runs, the next one starts if it is full."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from latentd.batching.batcher import Batcher
from latentd.batching.entries import BatchItem, single_item_batch
from latentd.batching.rowqueue import RowQueue
from latentd.batching.runner import BatchRunner, EngineError
from latentd.calls.context import CallContext
from latentd.calls.coroutines import Future
from latentd.metrics import Metrics
from tests.support.wait import LONG, result_of

BATCH = 4
LABELS = {"graph": "test"}


class Device:
    """Doubles rows. Each batch sets an event when it starts, and waits for one before it ends."""

    def __init__(self) -> None:
        self.started: dict[int, threading.Event] = {}
        self.may_end: dict[int, threading.Event] = {}
        self.open = False  # True: batches end by themselves

    def event(self, events: dict[int, threading.Event], row: int) -> threading.Event:
        return events.setdefault(row, threading.Event())

    def __call__(self, batch: Sequence[BatchItem]) -> tuple[np.ndarray]:
        rows = np.concatenate([item.payload[item.start : item.stop] for item in batch])
        first = int(rows[0])
        self.event(self.started, first).set()
        if not self.open:
            assert self.event(self.may_end, first).wait(LONG)
        if 13 in rows:
            raise RuntimeError("unlucky")
        return (rows * 2,)


class Harness:
    def __init__(self, initializer: Callable[[], object] | None = None) -> None:
        self.device, self.initialized = Device(), threading.Semaphore(0)
        self.metrics = Metrics(CollectorRegistry())
        queue = RowQueue(BATCH, 1000, 1 << 20)
        self.batcher = Batcher(
            *("test", ("toy", 1), queue, self.device, self.metrics),
            initializer=initializer or self.initialized.release,
            threads=2,
        )

    def submit(self, *rows: int) -> Future:
        array = np.array(rows)
        return self.batcher.submit(array, len(array), array.nbytes, CallContext())

    def wait_for_batch(self, row: int) -> None:
        """Wait until the batch whose first row this is has started on the device."""
        assert self.device.event(self.device.started, row).wait(LONG)

    def wait_for_an_idle_thread(self) -> None:
        deadline = time.monotonic() + LONG
        while not self.batcher._idle:
            assert time.monotonic() < deadline

    def end(self, row: int) -> None:
        self.device.event(self.device.may_end, row).set()


def rows_of(future: Future) -> list[int]:
    return result_of(future)[0].tolist()


@pytest.fixture
def h() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.device.open = True
    for event in list(harness.device.may_end.values()):
        event.set()
    harness.batcher.close()


def test_full_batch_starts_while_another_runs(h):
    first = h.submit(10, 11, 12, 14)
    h.wait_for_batch(10)
    second = h.submit(20, 21, 22, 23)
    h.wait_for_batch(20)  # before the first has ended
    h.end(20)
    h.end(10)
    assert rows_of(first) == [20, 22, 24, 28]
    assert rows_of(second) == [40, 42, 44, 46]


def test_batch_waits_to_grow_when_not_full(h):
    futures = [h.submit(10)]
    h.wait_for_batch(10)
    h.wait_for_an_idle_thread()
    futures += [h.submit(20), h.submit(21), h.submit(22)]
    assert h.batcher._idle == 1  # it has not been woken
    futures.append(h.submit(23))
    h.wait_for_batch(20)  # now it is full
    futures += [h.submit(30, 31, 32, 33)]
    for row in (10, 20, 30):
        h.end(row)
    assert [rows_of(future) for future in futures] == [
        *([20], [40], [42], [44], [46]),
        [60, 62, 64, 66],
    ]


def test_large_request_is_concatenated_in_order_when_its_last_batch_ends_first(h):
    large = h.submit(*range(100, 108))
    h.wait_for_batch(100)
    h.wait_for_batch(104)
    h.end(104)
    small = h.submit(1)  # the thread whose batch has ended takes it
    h.submit(2, 3, 4)
    h.wait_for_batch(1)
    h.end(1)
    assert rows_of(small) == [2]
    h.end(100)
    assert rows_of(large) == [2 * n for n in range(100, 108)]


def test_failing_batch_does_not_affect_the_other(h):
    bad, good = h.submit(13), None
    h.wait_for_batch(13)
    good = h.submit(20, 21, 22, 23)
    h.wait_for_batch(20)
    h.end(13)
    with pytest.raises(EngineError):
        rows_of(bad)
    h.end(20)
    assert rows_of(good) == [40, 42, 44, 46]


def test_running_since_is_the_start_of_the_oldest_batch(h):
    first = h.submit(10, 11, 12, 14)
    h.wait_for_batch(10)
    since = h.batcher.running_since
    second = h.submit(20, 21, 22, 23)
    h.wait_for_batch(20)
    assert h.batcher.running_since == since
    h.end(20)
    rows_of(second)
    assert h.batcher.running_since == since
    h.end(10)
    rows_of(first)
    assert h.batcher.running_since is None


def test_busy_seconds_never_exceed_the_elapsed_time(h):
    start = time.perf_counter()
    futures = [h.submit(10, 11, 12, 14), h.submit(20, 21, 22, 23)]
    h.wait_for_batch(10)
    h.wait_for_batch(20)
    while time.perf_counter() < start + 0.05:
        pass  # both batches are on the device meanwhile
    h.end(10)
    h.end(20)
    for future in futures:
        rows_of(future)
    busy = h.metrics.registry.get_sample_value("latentd_engine_busy_seconds_total", LABELS)
    assert 0 < busy < time.perf_counter() - start


def test_each_thread_runs_the_initializer_first(h):
    for _ in range(2):
        assert h.initialized.acquire(timeout=LONG)
    h.device.open = True
    assert rows_of(h.submit(*range(100, 140))) == [2 * n for n in range(100, 140)]
    assert not h.initialized.acquire(blocking=False)


def test_wait_until_ready_returns_when_all_threads_are_ready():
    go = threading.Semaphore(0)
    h = Harness(lambda: go.acquire(timeout=LONG))
    waited = threading.Event()
    thread = threading.Thread(target=lambda: (h.batcher.wait_until_ready(), waited.set()))
    thread.start()
    go.release()  # one of the two
    while sum(ready.done() for ready in h.batcher._ready) < 1:
        assert thread.is_alive()
    assert not waited.is_set()
    go.release()
    assert waited.wait(LONG)
    thread.join()
    h.batcher.close()


def test_wait_until_ready_raises_what_an_initializer_raised():
    fails = itertools.count()
    h = Harness(lambda: 1 // next(fails))  # the first of the two
    with pytest.raises(ZeroDivisionError):
        h.batcher.wait_until_ready()
    h.batcher.close()


def test_close_runs_waiting_rows_in_both_threads(h):
    futures = [h.submit(*range(100 * n, 100 * n + 4)) for n in range(1, 6)]
    h.wait_for_batch(100)
    h.wait_for_batch(200)
    h.device.open = True
    for row in (100, 200):
        h.end(row)
    h.batcher.close()
    assert [rows_of(future)[0] for future in futures] == [200, 400, 600, 800, 1000]


def test_time_of_a_run_is_counted_once_when_another_ends_at_the_same_moment(monkeypatch):
    """The second thread ends its run, as far as it can, just after the first has read the clock."""
    ended: list[float] = []
    runner = BatchRunner(
        *("test", lambda batch: (np.zeros((1, 1)),), Metrics(CollectorRegistry())),
        *(time.monotonic, 1, lambda work, seconds: ended.append(seconds)),
    )
    other = threading.Thread(target=lambda: runner.run(single_item_batch(None, 1)))
    clock, reads = time.perf_counter, itertools.count()

    def perf_counter() -> float:
        now = clock()
        if threading.current_thread() is not other and next(reads) == 1:  # the end of its run
            other.start()
            other.join(0.2)  # it waits for this thread, unless both may account at once
        return now

    monkeypatch.setattr(time, "perf_counter", perf_counter)
    assert not isinstance(runner.run(single_item_batch(None, 1))[0][1], Exception)
    other.join(LONG)
    assert len(ended) == 2
    assert min(ended) >= 0.0
