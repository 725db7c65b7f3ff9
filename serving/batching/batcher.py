"""The batching engine: rows of many requests in, batches to one graph, rows back to each request.

A `Lane` is one graph's queue and whoever empties it: its own thread, or, for batches so short that
handing them over would cost more, the thread that received the rows. Either pulls: whenever it is
free and rows wait, it takes the next batch and runs it. So nothing is delayed for the sake of a
fuller batch, and batches fill up by themselves exactly when the engine is the bottleneck. Where a
device runs the graph, a second thread brings the next batch there meanwhile, if a full one waits: a
batch that could still grow is left to.

Which rows come next is `rowqueue`'s matter; what becomes of a batch that fails, `runner`'s.
"""

from __future__ import annotations

import concurrent.futures
import logging
import math
import operator
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from latentd.batching.rowqueue import BatchItem, Entry, RowQueue
from latentd.batching.runner import BatchRunner, Outputs, Run
from latentd.calls.coroutines import CallContext, Future
from latentd.errors import DeadlineExceeded, Overloaded, Unavailable
from latentd.metrics import Metrics

log = logging.getLogger(__name__)

Answer = tuple[Entry, Outputs | Exception]

INLINE_MAX_SECONDS: Final = 0.006
"""A batch that takes no longer is run by the thread that received its rows, if that one helps."""

_helper: Final = threading.local()


def enable_inline_execution() -> list[Batcher]:
    """Let this thread help: short batches of rows that it submits are left for it to run.

    Two threads that take turns at Python's lock for every request spend more on the turns than on
    the requests. Returns the list of lanes that wait for it: while there are any, it must not
    block, and when it has nothing else to do, it must take one out and `run_next` it.
    """
    _helper.lanes = []
    lanes: list[Batcher] = _helper.lanes
    return lanes


class Batcher:
    """One graph's queue and the threads that empty it.

    name:  "encoder" or "decoder"
    model: name and version, for the gauges
    run:   called with the shares of one batch; by two threads at once, if there are two
    clock: the one deadlines are told by
    begin: called in each of the lane's own threads before anything else; no others run batches then
    threads: 1, or 2 to have the next full batch on its way while one runs
    """

    def __init__(
        self,
        name: str,
        model: tuple[str, int],
        queue: RowQueue,
        run: Run,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        begin: Callable[[], object] | None = None,
        threads: int = 1,
    ) -> None:
        self.name = name
        self._queue = queue
        self._runner = BatchRunner(name, run, metrics, clock, queue.batch_rows, self._learn)
        self._clock, self._begin = clock, begin
        self._changed = threading.Condition()  # guards the queue and the flags
        self._idle = 0  # how many of the lane's own threads wait to be called
        self._running = 0  # batches under way, whoever runs them
        self._ended = -math.inf  # when the last batch was done
        self._promised = False  # a helping thread will run the next batch
        self._closing = False
        self._begun: list[concurrent.futures.Future[None]] = [
            concurrent.futures.Future() for _ in range(threads)
        ]
        self._threads = [
            threading.Thread(target=self._work, args=(begun,), name=f"{name}-batcher", daemon=True)
            for begun in self._begun
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
        """The most rows one batch takes."""
        return self._queue.batch_rows

    @property
    def running_since(self) -> float | None:
        """Since when a batch runs, on time.monotonic's clock; None: nothing runs."""
        return self._runner.running_since

    @property
    def failures(self) -> int:
        """How many runs have raised since one did not."""
        return self._runner.failures

    @property
    def min_wait(self) -> float:
        """Seconds that rows submitted now would wait at least; without the lock: it is a guess."""
        return self._queue.min_wait

    @property
    def last_batch_end(self) -> float:
        """When the last batch was done, on the lane's clock; -inf: there was none yet."""
        return self._ended

    def wait_until_ready(self) -> None:
        """Block until the lane's threads are ready for batches. Raises what `begin` raised."""
        for begun in self._begun:
            begun.result()

    def submit(
        self,
        payload: Any,
        rows: int,
        nbytes: int,
        caller: CallContext,
        *,
        work: int = 0,
        weight: int = 1,
        keep: bool = True,
    ) -> Future[Outputs]:
        """Queue `rows` rows of `payload`; the reply is their outputs, in order, however batched.

        work: rows of the whole call, as far as known, where this is a part of a stream
        weight: each row costs a run as much as so many others, batch_rows at most
        keep: False: `run` gives the payload what is wanted of the outputs, and the reply has none
              of them where there were several batches

        Raises Overloaded at once when there is no room or no time, DeadlineExceeded when it is too
        late already, or would be however soon the rows ran, Unavailable when the lane is closing.
        The reply fails with DeadlineExceeded when the deadline passes before the last row ran, with
        EngineError when the engine fails on these rows. When the caller goes, what has not been run
        is dropped.
        """
        entry = Entry(payload, rows, nbytes, caller.deadline, caller.background)
        entry.work, entry.weight, entry.keeps_outputs = work, weight, keep
        reply: Future[Outputs] = Future(lambda: self._withdraw(entry))
        entry.reply, entry.stats = reply, caller.stats
        now = self._clock()
        if caller.deadline <= now:
            raise self._runner.expired("when the rows reached the queue")
        with self._changed:
            if self._closing:
                raise Unavailable("The server is stopping. Another one may answer.")
            try:
                self._queue.admit(entry, now)
            except (Overloaded, DeadlineExceeded) as refusal:
                self._count(refusal)
                raise
            self._call_for_a_run()
        caller.on_cancel(reply)
        return reply

    def check(self, rows: int, nbytes: int, caller: CallContext, weight: int = 1) -> None:
        """Raise what `submit` would raise now: for calls that run other rows first."""
        entry = Entry(None, rows, nbytes, caller.deadline, caller.background, weight=weight)
        with self._changed:
            try:
                self._queue.check(entry, self._clock())
            except (Overloaded, DeadlineExceeded) as refusal:
                self._count(refusal)
                raise

    def _count(self, refusal: Overloaded | DeadlineExceeded) -> None:
        if isinstance(refusal, Overloaded):
            self._metrics.shed.labels(self.name, refusal.reason).inc()
        else:
            self._metrics.dropped.labels(self.name, "expired").inc()

    def close(self) -> None:
        """Run what waits, then end the threads; blocks. New rows are refused from now on."""
        with self._changed:
            self._closing = True
            self._call_all()
        for thread in self._threads:
            thread.join()

    def _withdraw(self, entry: Entry) -> None:
        if self._finish(entry):
            _take_reply(entry)
            self._metrics.dropped.labels(self.name, "cancelled").inc()

    def run_next(self) -> bool:
        """Run the next batch in this thread, unless it is for others; False: nothing waits."""
        with self._changed:
            self._promised = False
            if not self._ready:
                return False
            now = self._clock()
            batch, expired = self._queue.take(now)
            if batch and not self._running:
                self._queue.observe_dispatch_gap(now - max(self._ended, batch[0].entry.enqueued_at))
            self._running += 1
            self._call_for_a_run()
        for entry in expired:
            _take_reply(entry).set_exception(self._runner.expired())
        answers = self._run_batch(batch)
        with self._changed:
            self._running, self._ended = self._running - 1, self._clock()
            waiting = self._queue.rows > 0
            if waiting:
                self._call_for_a_run()
            elif self._closing:
                self._call_all()
        for entry, answer in answers:
            if isinstance(answer, Exception):
                _take_reply(entry).set_exception(answer)
            else:
                _take_reply(entry).set_result(answer)
        return waiting

    @property
    def _ready(self) -> bool:
        """Whether a batch may be taken now: none runs, or a thread is free and a full one waits."""
        if not self._running:
            return self._queue.rows > 0
        free = self._running < len(self._threads)
        return free and self._queue.rows >= self._queue.batch_rows

    def _call_for_a_run(self) -> None:
        """See that somebody runs what waits: this thread if it helps, else one of the lane's."""
        if self._promised or not self._ready:
            return
        helped: list[Batcher] | None = getattr(_helper, "lanes", None)
        if (
            helped is not None
            and not self._begin
            and self._queue.next_seconds <= INLINE_MAX_SECONDS
        ):
            self._promised = True
            helped.append(self)
        elif self._idle:
            self._idle -= 1
            self._changed.notify()

    def _call_all(self) -> None:
        self._idle = 0
        self._changed.notify_all()

    def _work(self, begun: concurrent.futures.Future[None]) -> None:
        """One of the lane's own threads."""
        try:
            if self._begin:
                self._begin()
        except Exception as error:
            begun.set_exception(error)
        else:
            begun.set_result(None)
        while True:
            with self._changed:
                while self._promised or not self._ready:
                    if self._closing and not self._queue.rows and not self._running:
                        return
                    self._idle += 1
                    self._changed.wait()
            self.run_next()

    def _run_batch(self, batch: list[BatchItem]) -> list[Answer]:
        """Run one batch; the answers that it completes."""
        now = self._clock()
        for share in batch:
            if share.start == 0:
                share.entry.began = now
                self._queue_seconds.observe(now - share.entry.enqueued_at)
        answers: list[Answer] = []
        outcomes, ended = self._runner.run(batch), self._clock()
        for share, outcome in outcomes:
            entry = share.entry
            if not isinstance(outcome, Exception) and share.rows < entry.rows:
                with self._changed:
                    entry.parts.append((share.start, outcome if entry.keeps_outputs else ()))
                    entry.run += share.rows
                    if entry.run < entry.rows:
                        continue
                outcome = _rejoin(entry.parts)
            if self._finish(entry, ended):
                answers.append((entry, outcome))
        return answers

    def _learn(self, work: int, seconds: float) -> None:
        with self._changed:
            self._queue.observe(work, seconds)

    def _finish(self, entry: Entry, ended: float | None = None) -> bool:
        """Mark the entry answered; False: somebody did before, or its caller has gone. If it was
        run to its end, that is entered in its account."""
        with self._changed:
            was_wanted = self._queue.discard(entry)
            if was_wanted and ended is not None:
                entry.stats.note(self.name, entry.rows, entry.enqueued_at, entry.began, ended)
            return was_wanted

    def _oldest_age(self) -> float:
        with self._changed:
            oldest = self._queue.oldest()
        return 0.0 if oldest is None else self._clock() - oldest


def _take_reply(entry: Entry) -> Future[Outputs]:
    """The entry's reply, which the entry lets go of: together they are a cycle that only the
    garbage collector would free, with all the arrays it holds."""
    reply: Future[Outputs] = entry.reply
    entry.reply, entry.parts = None, []
    return reply


def _rejoin(parts: list[tuple[int, Outputs]]) -> Outputs:
    """The outputs of one request's shares, one below the other, whichever was done first.

    An output that only some of its batches had was wanted by their other requests.
    """
    parts.sort(key=operator.itemgetter(0))
    columns = zip(*(outputs for _, outputs in parts), strict=True)
    return tuple(
        None if any(part is None for part in column) else np.concatenate(column)
        for column in columns
    )
