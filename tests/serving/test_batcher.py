"""The lane: every surviving caller gets exactly its own rows, and nothing runs for the dead."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from serving.batcher import EngineError, Lane
from serving.errors import DeadlineExpired, NotReady, Overloaded
from serving.metrics import Metrics
from serving.rowqueue import RowQueue, Share
from serving.tasks import Caller, Cancelled, Reply, start

LONG = 20.0  # seconds; nothing here waits so long unless it is broken


class Doubler:
    """An engine that doubles, can be held, fails on 13 and remembers every row it ran."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, batch: Sequence[Share]) -> tuple[np.ndarray]:
        rows = np.concatenate([share.payload[share.start : share.stop] for share in batch])
        self.batches.append(rows.tolist())
        self.running.set()
        assert self.gate.wait(LONG)
        if 13 in rows:
            raise RuntimeError("unlucky")
        return (rows * 2,)

    @property
    def ran(self) -> list[int]:
        return [row for batch in self.batches for row in batch]


class Harness:
    def __init__(self, batch_rows: int = 4, max_rows: int = 1000) -> None:
        self.engine = Doubler()
        self.metrics = Metrics(CollectorRegistry())
        self.queue = RowQueue(batch_rows, max_rows, 1 << 20)
        self.now = 1000.0
        self.lane = Lane(
            "test", ("toy", 1), self.queue, self.engine, self.metrics, clock=lambda: self.now
        )

    def submit(self, *rows: int, urgency: Urgency = Urgency()) -> asyncio.Task:  # noqa: B008
        array = np.array(rows)
        call = self.lane.submit(array, len(array), array.nbytes, urgency)
        return asyncio.ensure_future(call)

    async def hold(self) -> asyncio.Task:
        """Occupy the engine with the row 0 until `release`."""
        self.engine.gate.clear()
        first = self.submit(0)
        await asyncio.to_thread(self.engine.running.wait, LONG)
        return first

    def release(self) -> None:
        self.engine.gate.set()

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"latentd_{name}", labels) or 0.0


def run(test: Callable) -> None:
    async def life() -> None:
        harness = Harness()
        try:
            await test(harness)
        finally:
            harness.release()
            await harness.lane.close()
        assert (harness.queue.rows, harness.queue.bytes) == (0, 0)

    asyncio.run(life())


def test_rows_that_come_while_the_engine_is_busy_share_a_batch():
    async def test(h: Harness) -> None:
        first = await h.hold()
        others = [h.submit(n) for n in (1, 2, 3)]
        await asyncio.sleep(0)
        h.release()
        assert [(await task)[0].tolist() for task in (first, *others)] == [[0], [2], [4], [6]]
        assert h.engine.batches == [[0], [1, 2, 3]]

    run(test)


def test_a_large_request_is_rejoined_in_order():
    async def test(h: Harness) -> None:
        (doubled,) = await h.submit(*range(20, 37))
        assert doubled.tolist() == [2 * n for n in range(20, 37)]
        assert [len(b) for b in h.engine.batches] == [4, 4, 4, 4, 1]

    run(test)


def test_a_poisoned_request_fails_alone():
    async def test(h: Harness) -> None:
        first = await h.hold()
        tasks = [h.submit(n) for n in (1, 13, 2, 3)]
        await asyncio.sleep(0)
        h.release()
        await first
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [r[0].tolist() for r in (results[0], results[2], results[3])] == [[2], [4], [6]]
        assert isinstance(results[1], EngineError)
        assert isinstance(results[1].__cause__, RuntimeError)

    run(test)


def test_a_cancelled_request_is_not_run():
    async def test(h: Harness) -> None:
        first = await h.hold()
        cancelled, kept = h.submit(1), h.submit(2)
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.sleep(0)
        assert h.queue.rows == 1, "it leaves the queue at once"
        h.release()
        await asyncio.gather(first, kept)
        assert h.engine.ran == [0, 2]
        assert h.count("dropped_total", lane="test", reason="cancelled") == 1

    run(test)


def test_a_request_cancelled_in_the_middle_of_its_batch_leaves_its_mates_their_rows():
    async def test(h: Harness) -> None:
        first = await h.hold()
        first.cancel()
        mate = h.submit(5)
        await asyncio.sleep(0)
        h.release()
        assert (await mate)[0].tolist() == [10]
        with pytest.raises(asyncio.CancelledError):
            await first

    run(test)


def test_a_deadline_that_passes_in_the_queue_is_answered_and_not_run():
    async def test(h: Harness) -> None:
        first = await h.hold()
        late = h.submit(1, urgency=Urgency(deadline=h.now + 5))
        await asyncio.sleep(0)
        h.now += 6
        h.release()
        with pytest.raises(DeadlineExpired):
            await late
        await first
        assert h.engine.ran == [0]
        assert h.count("dropped_total", lane="test", reason="expired") == 1

    run(test)


def test_a_deadline_already_passed_is_refused_at_the_door():
    async def test(h: Harness) -> None:
        with pytest.raises(DeadlineExpired):
            await h.submit(1, urgency=Urgency(deadline=h.now - 1))
        assert h.engine.batches == []

    run(test)


def test_a_full_queue_sheds_and_counts():
    async def test(h: Harness) -> None:
        h.queue.max_rows = 2
        first = await h.hold()
        waiting = h.submit(1, 2)
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await h.submit(3)
        h.release()
        await asyncio.gather(first, waiting)
        assert h.count("shed_total", lane="test", reason="queue_full") == 1

    run(test)


def test_closing_finishes_what_waits_and_refuses_the_rest():
    async def test(h: Harness) -> None:
        first = await h.hold()
        waiting = h.submit(1)
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(h.lane.close())
        await asyncio.sleep(0)
        with pytest.raises(NotReady):
            await h.submit(2)
        h.release()
        await asyncio.gather(first, waiting, closing)

    run(test)


def test_an_engine_that_loses_rows_fails_the_batch_instead_of_shifting_answers():
    async def life() -> None:
        metrics = Metrics(CollectorRegistry())
        queue = RowQueue(4, 100, 1 << 20)
        lane = Lane("test", ("toy", 1), queue, lambda batch: (np.zeros(1),), metrics)
        with pytest.raises(EngineError):
            await lane.submit(np.zeros(3), 3, 24, Urgency())
        await lane.close()

    asyncio.run(life())
