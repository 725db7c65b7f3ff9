"""The batcher: rows of many requests in, batches to one graph, rows back to each request.

A `Batcher` is one graph's queue and the threads that empty it. A batch is run by one of the
batcher's own threads. A batch too short to be worth a change of threads is run by the thread that
received its rows. A thread that is free pulls the next batch as soon as rows wait. So the batcher
never delays rows for the sake of a fuller batch, and batches fill up exactly when the engine is the
bottleneck. For a graph on a device, a second thread sends the next batch there while one runs, if
that batch is full: a batch that is not full stays in the queue, where it can still grow.

`rowqueue` decides which rows come next. `runner` decides what becomes of a batch that fails.

**The thread that runs a batch also resumes the calls that wait for it: the code after an `await`
may run in another thread than the code before it.** serving/README.md, "How a call runs", lists the
threads and what each may block on.
"""

from __future__ import annotations

import concurrent.futures
import logging
import math
import operator
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, Final, Protocol

import numpy as np

from latentd.batching.entries import BatchItem, Entry
from latentd.batching.rowqueue import RowQueue
from latentd.batching.runner import BatchRunner, Outputs, RunFn
from latentd.calls.coroutines import Future
from latentd.errors import DeadlineExceeded, Overloaded, Unavailable
from latentd.metrics import Metrics

log = logging.getLogger(__name__)

Result = tuple[Entry, Outputs | Exception]

INLINE_MAX_SECONDS: Final = 0.006
"""A batch that takes no longer runs in the thread that received its rows, if it runs inline."""

_inline: Final = threading.local()


class StatsRecorder(Protocol):
    """Adds up what one call costs."""

    def record(
        self, graph: str, rows: int, queued_at: float, started_at: float, ended_at: float
    ) -> None:
        """Record that a graph has run some rows; times on time.monotonic's clock."""


class RequestContext(Protocol):
    """What a batcher must know of the call that submits rows.

    deadline:   seconds on the batcher's clock; math.inf: none
    background: the call lets others go first
    """

    deadline: float
    background: bool

    @property
    def stats(self) -> StatsRecorder:
        """Where the times of the call's rows are recorded."""

    def on_cancel(self, future: Future[Any]) -> None:
        """Fail `future` with Cancelled when the call is cancelled."""


def enable_inline_execution() -> list[Batcher]:
    """Let this thread run the short batches of the rows that it submits.

    Two threads that pass Python's lock to each other for every request spend more time on that than
    on the requests. Returns the list of batchers that wait for this thread. While the list is not
    empty, the thread must not block. When it has nothing else to do, it must remove one from the
    list and call its `run_next`.
    """
    _inline.scheduled = []
    scheduled: list[Batcher] = _inline.scheduled
    return scheduled


class Batcher:
    """One graph's queue and the threads that empty it.

    name:  of the graph: "encoder" or "decoder"
    model: name and version, for the gauges
    run:   called with the items of one batch; with two threads, by both at once
    clock: the clock of all deadlines
    initializer: each of the batcher's own threads calls it first; with an initializer, no other
                 threads run batches
    threads: 1, or 2 to send the next full batch to the device while one runs
    """

    def __init__(
        self,
        name: str,
        model: tuple[str, int],
        queue: RowQueue,
        run: RunFn,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        initializer: Callable[[], object] | None = None,
        threads: int = 1,
    ) -> None:
        self.name = name
        self._queue = queue
        self._runner = BatchRunner(name, run, metrics, clock, queue.batch_rows, self._on_success)
        self._clock, self._initializer = clock, initializer
        self._lock = threading.RLock()  # guards the queue and the flags
        self._changed = threading.Condition(self._lock)
        self._idle = 0  # how many of the batcher's own threads wait to be woken
        self._running = 0  # batches that run now, in any thread
        self._last_batch_end = -math.inf
        self._inline_scheduled = False  # a thread that runs inline will run the next batch
        self._closing = False
        self._ready: list[concurrent.futures.Future[None]] = [
            concurrent.futures.Future() for _ in range(threads)
        ]
        self._threads = [
            threading.Thread(target=self._work, args=(ready,), name=f"{name}-batcher", daemon=True)
            for ready in self._ready
        ]
        self._metrics = metrics
        self._queue_seconds = metrics.queue_duration.labels(name)
        labels = (name, model[0], str(model[1]))
        metrics.register_callback(metrics.queue_rows, lambda: queue.rows, *labels)
        metrics.register_callback(metrics.queue_oldest, self._oldest_age, *labels)
        for thread in self._threads:
            thread.start()

    @property
    def batch_rows(self) -> int:
        """The largest number of rows in one batch."""
        return self._queue.batch_rows

    @property
    def running_since(self) -> float | None:
        """When the oldest running batch started, on time.monotonic's clock; None: none runs."""
        return self._runner.running_since

    @property
    def failures(self) -> int:
        """How many runs have raised since the last success."""
        return self._runner.failures

    @property
    def min_wait(self) -> float:
        """Estimate of the least seconds that new rows would wait; read without the lock."""
        return self._queue.min_wait

    @property
    def last_batch_end(self) -> float:
        """When the last batch ended, on the batcher's clock; -inf: none has run yet."""
        return self._last_batch_end

    def wait_until_ready(self) -> None:
        """Block until all threads are ready for batches. Raises what `initializer` raised."""
        for ready in self._ready:
            ready.result()

    def submit(
        self,
        payload: Any,
        rows: int,
        nbytes: int,
        context: RequestContext,
        *,
        work: int = 0,
        weight: int = 1,
        keep_outputs: bool = True,
        shape: Hashable = (),
        scale: int = 1,
    ) -> Future[Outputs]:
        """Queue `rows` rows of `payload`. The future's result is their outputs, in order, however
        the rows were batched.

        work: rows of the whole call, as far as known, if these rows are a part of a stream
        weight: each row costs a run as much as so many others, at most batch_rows
        keep_outputs: False: `run` gives the payload the outputs it needs; the result has none
                      of them if there were several batches
        shape: the rows share batches only with rows of an equal shape
        scale: a row of this shape costs a run as much as so many of the cheapest shape

        Raises Overloaded at once when there is no room or no time; DeadlineExceeded when the
        deadline has passed or is too near for these rows even in an empty queue; Unavailable when
        the batcher is closing. The future fails with DeadlineExceeded when the deadline passes
        before the last row has run, with EngineError when the engine fails on these rows. When the
        call is cancelled, the rows that have not run are dropped.
        """
        entry = Entry(payload, rows, nbytes, context.deadline, context.background)
        entry.work, entry.weight, entry.keep_outputs = work, weight, keep_outputs
        entry.shape, entry.scale = shape, scale
        future: Future[Outputs] = Future(lambda: self._cancel(entry))
        entry.future, entry.stats = future, context.stats
        now = self._clock()
        if context.deadline <= now:
            raise self._runner.expired("before the rows were queued")
        with self._lock:
            if self._closing:
                raise Unavailable("The server is shutting down. Retry on another server.")
            try:
                self._queue.admit(entry, now)
            except (Overloaded, DeadlineExceeded) as error:
                self._count_rejected(error)
                raise
            self._wake_one()
        context.on_cancel(future)
        return future

    def check(
        self,
        rows: int,
        nbytes: int,
        context: RequestContext,
        weight: int = 1,
        *,
        shape: Hashable = (),
        scale: int = 1,
    ) -> None:
        """Raise what `submit` would raise now: for calls that run other rows first."""
        entry = Entry(None, rows, nbytes, context.deadline, context.background)
        entry.weight, entry.shape, entry.scale = weight, shape, scale
        with self._lock:
            try:
                self._queue.check(entry, self._clock())
            except (Overloaded, DeadlineExceeded) as error:
                self._count_rejected(error)
                raise

    def _count_rejected(self, error: Overloaded | DeadlineExceeded) -> None:
        if isinstance(error, Overloaded):
            self._metrics.shed.labels(self.name, error.reason).inc()
        else:
            self._metrics.dropped.labels(self.name, "expired").inc()

    def close(self) -> None:
        """Refuse new rows, run the rows that wait, then end the threads; blocks."""
        with self._lock:
            self._closing = True
            self._wake_all()
        for thread in self._threads:
            thread.join()

    def _cancel(self, entry: Entry) -> None:
        if self._finish(entry):
            _detach_future(entry)
            self._metrics.dropped.labels(self.name, "cancelled").inc()

    def run_next(self) -> bool:
        """Run the next batch in this thread, unless another thread is to run it. Returns whether
        more rows wait."""
        with self._lock:
            self._inline_scheduled = False
            if not self._can_run:
                return False
            now = self._clock()
            batch, expired = self._queue.next_batch(now)
            if batch and not self._running:
                free_since = max(self._last_batch_end, batch[0].entry.queued_at)
                self._queue.observe_dispatch_gap(now - free_since)
            self._running += 1
            self._wake_one()
        for entry in expired:
            _detach_future(entry).set_exception(self._runner.expired())
        results = self._run_batch(batch)
        with self._lock:
            self._running, self._last_batch_end = self._running - 1, self._clock()
            waiting = self._queue.rows > 0
            if waiting:
                self._wake_one()
            elif self._closing:
                self._wake_all()
        for entry, result in results:
            if isinstance(result, Exception):
                _detach_future(entry).set_exception(result)
            else:
                try:
                    result = _concat_parts(entry.parts) if entry.parts else result
                except Exception as error:  # no memory: it must end neither thread nor other calls
                    _detach_future(entry).set_exception(error)
                else:
                    _detach_future(entry).set_result(result)
        return waiting

    @property
    def _can_run(self) -> bool:
        """Whether a batch may start: none runs, or a thread is free and a full batch waits."""
        if not self._running:
            return self._queue.rows > 0
        free = self._running < len(self._threads)
        return free and self._queue.full_batch_waits

    def _wake_one(self) -> None:
        """Have a thread run the rows that wait: this one if it runs inline, else one of ours."""
        if self._inline_scheduled or not self._can_run:
            return
        scheduled: list[Batcher] | None = getattr(_inline, "scheduled", None)
        if (
            scheduled is not None
            and not self._initializer
            and self._queue.next_seconds <= INLINE_MAX_SECONDS
        ):
            self._inline_scheduled = True
            scheduled.append(self)
        elif self._idle:
            self._idle -= 1
            self._changed.notify()

    def _wake_all(self) -> None:
        self._idle = 0
        self._changed.notify_all()

    def _work(self, ready: concurrent.futures.Future[None]) -> None:
        """One of the batcher's own threads."""
        try:
            if self._initializer:
                self._initializer()
        except Exception as error:
            ready.set_exception(error)
        else:
            ready.set_result(None)
        while True:
            with self._lock:
                while self._inline_scheduled or not self._can_run:
                    if self._closing and not self._queue.rows and not self._running:
                        return
                    self._idle += 1
                    self._changed.wait()
            self.run_next()

    def _run_batch(self, batch: list[BatchItem]) -> list[Result]:
        """Run one batch; returns the results of the entries that it completes."""
        now = self._clock()
        for item in batch:
            if item.start == 0:
                item.entry.started_at = now
                self._queue_seconds.observe(now - item.entry.queued_at)
        outcomes, ended_at = self._runner.run(batch), self._clock()
        with self._lock:
            return [
                (item.entry, outcome)
                for item, outcome in outcomes
                if self._is_last(item, outcome) and self._finish(item.entry, ended_at)
            ]

    def _is_last(self, item: BatchItem, outcome: Outputs | Exception) -> bool:
        """Whether the outcome ends its entry; otherwise keep it until the other rows have run."""
        entry = item.entry
        if item.rows == entry.rows or isinstance(outcome, Exception):
            return True
        entry.parts.append((item.start, outcome if entry.keep_outputs else ()))
        entry.rows_run += item.rows
        return entry.rows_run == entry.rows

    def _on_success(self, work: int, seconds: float) -> None:
        with self._lock:
            self._queue.observe(work, seconds)

    def _finish(self, entry: Entry, ended_at: float | None = None) -> bool:
        """Mark the entry done. Returns False if it was done already, or its call was cancelled.

        ended_at: when its last row had run: recorded in the call's statistics.
        """
        with self._lock:
            was_waiting = self._queue.discard(entry)
            if was_waiting and ended_at is not None:
                entry.stats.record(
                    self.name, entry.rows, entry.queued_at, entry.started_at, ended_at
                )
            return was_waiting

    def _oldest_age(self) -> float:
        with self._lock:
            oldest = self._queue.oldest()
        return 0.0 if oldest is None else self._clock() - oldest


def _detach_future(entry: Entry) -> Future[Outputs]:
    """The entry's future, removed from the entry: together they are a cycle that only the garbage
    collector would free, with all of its arrays."""
    future: Future[Outputs] = entry.future
    entry.future, entry.parts = None, []
    return future


def _concat_parts(parts: list[tuple[int, Outputs]]) -> Outputs:
    """The outputs of one request's batch items, concatenated in the order of the rows.

    An output that is missing in some of the batches was not requested by this call, but by others
    in the same batches: the result has None for it.
    """
    parts.sort(key=operator.itemgetter(0))
    columns = zip(*(outputs for _, outputs in parts), strict=True)
    return tuple(
        None if any(part is None for part in column) else np.concatenate(column)
        for column in columns
    )
