"""A lane with two threads: while a batch runs, the next one is on its way if it is full."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from latentd.batching.batcher import Batcher
from latentd.batching.rowqueue import BatchItem, RowQueue
from latentd.batching.runner import EngineError
from latentd.calls.coroutines import CallContext, Future
from latentd.metrics import Metrics
from tests.support.wait import LONG, awaited

BATCH = 4
LANE = {"graph": "test"}


class Device:
    """Doubles rows. Each batch says that it has come, and ends when it is let go."""

    def __init__(self) -> None:
        self.came: dict[int, threading.Event] = {}
        self.may_end: dict[int, threading.Event] = {}
        self.open = False  # batches end by themselves

    def event(self, events: dict[int, threading.Event], row: int) -> threading.Event:
        return events.setdefault(row, threading.Event())

    def __call__(self, batch: Sequence[BatchItem]) -> tuple[np.ndarray]:
        rows = np.concatenate([share.payload[share.start : share.stop] for share in batch])
        first = int(rows[0])
        self.event(self.came, first).set()
        if not self.open:
            assert self.event(self.may_end, first).wait(LONG)
        if 13 in rows:
            raise RuntimeError("unlucky")
        return (rows * 2,)


class Harness:
    def __init__(self, begin: Callable[[], object] | None = None) -> None:
        self.device, self.begun = Device(), threading.Semaphore(0)
        self.metrics = Metrics(CollectorRegistry())
        queue = RowQueue(BATCH, 1000, 1 << 20)
        self.batcher = Batcher(
            *("test", ("toy", 1), queue, self.device, self.metrics),
            begin=begin or self.begun.release,
            threads=2,
        )

    def submit(self, *rows: int) -> Future:
        array = np.array(rows)
        return self.batcher.submit(array, len(array), array.nbytes, CallContext())

    def wait_for(self, row: int) -> None:
        """Until a batch that begins with this row is with the device."""
        assert self.device.event(self.device.came, row).wait(LONG)

    def wait_for_an_idle_thread(self) -> None:
        deadline = time.monotonic() + LONG
        while not self.batcher._idle:
            assert time.monotonic() < deadline

    def end(self, row: int) -> None:
        self.device.event(self.device.may_end, row).set()


def answer(reply: Future) -> list[int]:
    return awaited(reply)[0].tolist()


@pytest.fixture
def h() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.device.open = True
    for event in list(harness.device.may_end.values()):
        event.set()
    harness.batcher.close()


def test_a_full_batch_is_brought_while_another_runs(h):
    first = h.submit(10, 11, 12, 14)
    h.wait_for(10)
    second = h.submit(20, 21, 22, 23)
    h.wait_for(20)  # though the first has not ended
    h.end(20)
    h.end(10)
    assert answer(first) == [20, 22, 24, 28]
    assert answer(second) == [40, 42, 44, 46]


def test_a_batch_that_could_still_grow_is_left_to(h):
    replies = [h.submit(10)]
    h.wait_for(10)
    h.wait_for_an_idle_thread()
    replies += [h.submit(20), h.submit(21), h.submit(22)]
    assert h.batcher._idle == 1  # it has not been called
    replies.append(h.submit(23))
    h.wait_for(20)  # now it is full
    replies += [h.submit(30, 31, 32, 33)]
    for row in (10, 20, 30):
        h.end(row)
    assert [answer(reply) for reply in replies] == [
        *([20], [40], [42], [44], [46]),
        [60, 62, 64, 66],
    ]


def test_a_large_request_is_rejoined_in_order_though_its_end_is_done_first(h):
    large = h.submit(*range(100, 108))
    h.wait_for(100)
    h.wait_for(104)
    h.end(104)
    small = h.submit(1)  # taken by the thread whose batch is done
    h.submit(2, 3, 4)
    h.wait_for(1)
    h.end(1)
    assert answer(small) == [2]
    h.end(100)
    assert answer(large) == [2 * n for n in range(100, 108)]


def test_one_that_fails_leaves_the_one_beside_it_alone(h):
    bad, good = h.submit(13), None
    h.wait_for(13)
    good = h.submit(20, 21, 22, 23)
    h.wait_for(20)
    h.end(13)
    with pytest.raises(EngineError):
        answer(bad)
    h.end(20)
    assert answer(good) == [40, 42, 44, 46]


def test_what_runs_longest_is_what_the_watchdog_sees(h):
    first = h.submit(10, 11, 12, 14)
    h.wait_for(10)
    since = h.batcher.running_since
    second = h.submit(20, 21, 22, 23)
    h.wait_for(20)
    assert h.batcher.running_since == since
    h.end(20)
    answer(second)
    assert h.batcher.running_since == since
    h.end(10)
    answer(first)
    assert h.batcher.running_since is None


def test_the_device_is_never_busier_than_all_the_time(h):
    began = time.perf_counter()
    replies = [h.submit(10, 11, 12, 14), h.submit(20, 21, 22, 23)]
    h.wait_for(10)
    h.wait_for(20)
    while time.perf_counter() < began + 0.05:
        pass  # so long both hold the device
    h.end(10)
    h.end(20)
    for reply in replies:
        answer(reply)
    busy = h.metrics.registry.get_sample_value("latentd_engine_busy_seconds_total", LANE)
    assert 0 < busy < time.perf_counter() - began


def test_each_thread_begins_before_it_runs_anything(h):
    for _ in range(2):
        assert h.begun.acquire(timeout=LONG)
    h.device.open = True
    assert answer(h.submit(*range(100, 140))) == [2 * n for n in range(100, 140)]
    assert not h.begun.acquire(blocking=False)


def test_who_waits_for_a_lane_hears_when_its_threads_are_ready():
    go = threading.Semaphore(0)
    h = Harness(lambda: go.acquire(timeout=LONG))
    waited = threading.Event()
    thread = threading.Thread(target=lambda: (h.batcher.wait_until_ready(), waited.set()))
    thread.start()
    go.release()  # one of the two
    while sum(begun.done() for begun in h.batcher._begun) < 1:
        assert thread.is_alive()
    assert not waited.is_set()
    go.release()
    assert waited.wait(LONG)
    thread.join()
    h.batcher.close()


def test_who_waits_for_a_lane_hears_what_a_thread_failed_with():
    fails = itertools.count()
    h = Harness(lambda: 1 // next(fails))  # the first of the two
    with pytest.raises(ZeroDivisionError):
        h.batcher.wait_until_ready()
    h.batcher.close()


def test_closing_finishes_what_waits_in_both_threads(h):
    replies = [h.submit(*range(100 * n, 100 * n + 4)) for n in range(1, 6)]
    h.wait_for(100)
    h.wait_for(200)
    h.device.open = True
    for row in (100, 200):
        h.end(row)
    h.batcher.close()
    assert [answer(reply)[0] for reply in replies] == [200, 400, 600, 800, 1000]
