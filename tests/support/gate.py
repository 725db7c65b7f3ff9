"""Holds the batches of one graph, so that a test decides when calls go on."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from latentd.batching.entries import BatchItem

SECONDS = 120  # only broken code makes a test wait so long


class Gate:
    """Holds each batch of a batcher until `open` lets it run. Counts the rows that ran."""

    def __init__(self, graph) -> None:
        self._run, self._runner = graph._runner._run, graph._runner
        self._started, self._permits = threading.Semaphore(0), threading.Semaphore(0)
        self.rows = 0
        self._runner._run = self._wait
        # So slow a graph is not run inline, in the listener thread.
        graph._queue.batch_seconds = 0.02

    def _wait(self, batch: Sequence[BatchItem]):
        self._started.release()
        assert self._permits.acquire(timeout=SECONDS)
        self.rows += sum(item.rows for item in batch)
        return self._run(batch)

    def wait_for_batch(self) -> None:
        assert self._started.acquire(timeout=SECONDS)

    def open(self, batches: int = 1000) -> None:
        self._permits.release(batches)

    def remove(self) -> None:
        self.open()
        self._runner._run = self._run
