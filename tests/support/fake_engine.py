"""A batcher on a clock that a test moves, with an engine that doubles its input."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from prometheus_client import CollectorRegistry

from latentd.batching.batcher import Batcher
from latentd.batching.entries import BatchItem
from latentd.batching.rowqueue import RowQueue
from latentd.calls.context import CallContext
from latentd.calls.coroutines import Future
from latentd.metrics import Metrics
from tests.support.wait import LONG, result_of


class Doubler:
    """An engine that doubles rows, can be held, fails on 13 and 99, and records all rows it ran."""

    def __init__(self) -> None:
        self.loses_rows = False
        self.check: Callable[[list[int]], None] = lambda rows: None
        self.on_failure: Callable[[], None] = lambda: None
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, batch: Sequence[BatchItem]) -> tuple[np.ndarray]:
        rows = np.concatenate([item.payload[item.start : item.stop] for item in batch])
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
    """A batcher on a clock that a test moves, and its engine."""

    def __init__(self, batch_rows: int = 4, batch_seconds: float = 0.0) -> None:
        self.engine = Doubler()
        self.metrics = Metrics(CollectorRegistry())
        self.queue = RowQueue(batch_rows, 1000, 1 << 20, batch_seconds)
        self.now = 1000.0
        self.batcher = Batcher(
            "test", ("toy", 1), self.queue, self.engine, self.metrics, clock=lambda: self.now
        )

    def submit(self, *rows: int, context: CallContext | None = None) -> Future:
        array = np.array(rows)
        return self.batcher.submit(array, len(array), array.nbytes, context or CallContext())

    def hold(self, context: CallContext | None = None) -> Future:
        """Keep the engine busy with the row 0 until `release`."""
        self.engine.gate.clear()
        first = self.submit(0, context=context)
        assert self.engine.running.wait(LONG)
        return first

    def release(self) -> None:
        self.engine.gate.set()

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"latentd_{name}", labels) or 0.0


def rows_of(future: Future) -> list[int]:
    """Wait for a future's rows, or raise its exception."""
    (rows,) = result_of(future)
    return rows.tolist()
