"""Runs a batcher's batches: counts and times them, and finds the request that makes one fail.

Knows neither gRPC nor ONNX: `run` turns batch items into arrays.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from latentd.batching.entries import BatchItem
from latentd.errors import DeadlineExceeded, LatentdError
from latentd.metrics import Metrics

log = logging.getLogger(__name__)

Outputs = tuple[Any, ...]
"""The results of a run: arrays whose first axis is the batch's rows; None for an output that no
request of the batch asked for."""
RunFn = Callable[[Sequence[BatchItem]], Outputs]
Outcome = tuple[BatchItem, Outputs | Exception]

MAX_BISECT_RUNS: Final = 16
"""How many runs may fail in the search for the requests that make one batch fail."""


class EngineError(LatentdError):
    """The engine raised on these rows, or returned another number of rows than it was given."""


class BatchRunner:
    """Runs the batches of one graph. Several threads may run some at once: each is timed apart.

    name, run, clock: as the batcher's
    batch_rows: the largest number of rows in a batch, to measure how full batches are
    on_success: called after each run that did not fail, with the work of the rows and the seconds
    """

    def __init__(
        self,
        name: str,
        run: RunFn,
        metrics: Metrics,
        clock: Callable[[], float],
        batch_rows: int,
        on_success: Callable[[int, float], None],
    ) -> None:
        self._name, self._run, self._clock = name, run, clock
        self._max_rows, self._on_success = batch_rows, on_success
        self._started_at: dict[int, float] = {}  # by thread, on time.monotonic's clock
        self._lock = threading.Lock()  # guards the next one
        self._ended_at = 0.0  # the last run's end, on time.perf_counter's clock
        self.failures = 0  # runs that raised since the last success
        self._run_seconds = metrics.compute_duration.labels(name)
        self._batch_rows = metrics.batch_rows.labels(name)
        self._batch_fill = metrics.batch_fill.labels(name)
        self._busy = metrics.engine_busy.labels(name)
        self._failed = metrics.failed_batches.labels(name)
        self._expired = metrics.dropped.labels(name, "expired")

    @property
    def running_since(self) -> float | None:
        """When the oldest current run started, on time.monotonic's clock; None: none runs."""
        return min(list(self._started_at.values()), default=None)

    def run(self, batch: list[BatchItem]) -> list[Outcome]:
        """Run a batch; returns the outcome of each item that is still wanted."""
        return self._bisect(batch, [MAX_BISECT_RUNS])

    def expired(self, when: str = "while queued") -> DeadlineExceeded:
        """The error for rows whose deadline passed before they ran; counts it."""
        self._expired.inc()
        return DeadlineExceeded(f"Deadline exceeded {when}; the rows were not run.")

    def _bisect(self, batch: list[BatchItem], attempts: list[int]) -> list[Outcome]:
        """Run a batch; if that fails, run its halves, down to the request that fails alone.

        attempts: runs that may still fail before all remaining rows fail with the engine's error.
        """
        batch, outcomes = self._still_wanted(batch)
        if not batch:
            return outcomes
        try:
            outputs = self._run_timed(batch)
        except Exception as error:
            attempts[0] -= 1
            self.failures += 1
            self._failed.inc()
            log.exception("The %s failed on a batch of %d requests.", self._name, len(batch))
            if len(batch) > 1 and attempts[0] > 0:
                middle = len(batch) // 2
                outcomes += self._bisect(batch[:middle], attempts)
                outcomes += self._bisect(batch[middle:], attempts)
            else:
                failure = EngineError(f"The {self._name} failed on these rows.")
                failure.__cause__ = error
                outcomes += [(item, failure) for item in batch]
            return outcomes
        start = 0
        for item in batch:
            stop = start + item.rows
            outcomes.append((item, tuple([o if o is None else o[start:stop] for o in outputs])))
            start = stop
        return outcomes

    def _still_wanted(self, batch: list[BatchItem]) -> tuple[list[BatchItem], list[Outcome]]:
        """The last check before a run: the batch without cancelled and expired items, and the
        outcomes of the expired ones."""
        now = self._clock()
        wanted = [item for item in batch if not item.entry.done]
        late = [item for item in wanted if item.entry.deadline <= now]
        if late:
            wanted = [item for item in wanted if item.entry.deadline > now]
        return wanted, [(item, self.expired()) for item in late]

    def _run_timed(self, batch: list[BatchItem]) -> Outputs:
        rows = sum([item.rows for item in batch])
        started_at, thread = time.perf_counter(), threading.get_ident()
        self._started_at[thread] = time.monotonic()
        try:
            outputs = self._run(batch)
        finally:
            del self._started_at[thread]
        with self._lock:  # with a time taken before, another thread's run may have ended later
            ended_at = time.perf_counter()
            # While another thread's run occupied the device, this one waited: that does not count.
            seconds, self._ended_at = ended_at - max(started_at, self._ended_at), ended_at
        for output in outputs:
            if output is not None and len(output) != rows:
                raise EngineError(f"{rows} rows went in and {len(output)} came out.")
        self.failures = 0
        self._on_success(sum([item.rows * item.entry.row_work for item in batch]), seconds)
        self._run_seconds.observe(seconds)
        self._busy.inc(seconds)
        self._batch_rows.observe(rows)
        scale = batch[0].entry.scale  # all rows of a batch have the same shape
        self._batch_fill.observe(min(rows * scale / self._max_rows, 1.0))
        return outputs
