"""Running a lane's batches: counted, timed, and when one fails, whom to blame found out.

Knows neither gRPC nor ONNX: `run` turns shares of payloads into arrays.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from latentd.batching.rowqueue import BatchItem
from latentd.errors import DeadlineExceeded, LatentdError
from latentd.metrics import Metrics

log = logging.getLogger(__name__)

Outputs = tuple[Any, ...]
"""What a run gives: arrays whose first axis is the batch's rows; None for what nobody wanted."""
Run = Callable[[Sequence[BatchItem]], Outputs]
Outcome = tuple[BatchItem, Outputs | Exception]

MAX_BISECT_RUNS: Final = 16
"""Failing runs spent on finding whom to blame for one failed batch."""


class EngineError(LatentdError):
    """The engine raised on these rows, or gave back another number of rows than it was given."""


class BatchRunner:
    """Runs the batches of one graph. Several threads may: their times are then told apart.

    name, run, clock: as the lane's
    batch_rows: the most rows that a batch may have, for the gauge of how full they are
    learn: told the rows, times their weights, and the seconds of each run that did not fail
    """

    def __init__(
        self,
        name: str,
        run: Run,
        metrics: Metrics,
        clock: Callable[[], float],
        batch_rows: int,
        learn: Callable[[int, float], None],
    ) -> None:
        self._name, self._run, self._clock = name, run, clock
        self._most_rows, self._learn = batch_rows, learn
        self._began: dict[int, float] = {}  # by thread, on time.monotonic's clock
        self._ended = 0.0  # the last run's end, on time.perf_counter's clock
        self.failures = 0  # runs that raised since one did not
        self._run_seconds = metrics.compute_duration.labels(name)
        self._batch_rows = metrics.batch_rows.labels(name)
        self._batch_fill = metrics.batch_fill.labels(name)
        self._busy = metrics.engine_busy.labels(name)
        self._failed = metrics.failed_batches.labels(name)
        self._expired = metrics.dropped.labels(name, "expired")

    @property
    def running_since(self) -> float | None:
        """When the oldest run under way began, on time.monotonic's clock; None: there is none."""
        return min(list(self._began.values()), default=None)

    def run(self, batch: list[BatchItem]) -> list[Outcome]:
        """Run a batch; what became of each share that anybody still waits for."""
        return self._isolate(batch, [MAX_BISECT_RUNS])

    def expired(self, when: str = "while the rows waited") -> DeadlineExceeded:
        """What rows are answered with that are too late to be run; counts them."""
        self._expired.inc()
        return DeadlineExceeded(f"The deadline passed {when}. They were not run.")

    def _isolate(self, batch: list[BatchItem], attempts: list[int]) -> list[Outcome]:
        """Run a batch; if that fails, run its halves, down to the request that is to blame.

        attempts: runs that may still fail before the rest is given up as the engine's own fault.
        """
        batch, outcomes = self._still_wanted(batch)
        if not batch:
            return outcomes
        try:
            outputs = self._timed(batch)
        except Exception as error:
            attempts[0] -= 1
            self.failures += 1
            self._failed.inc()
            log.exception("The %s failed on a batch of %d requests.", self._name, len(batch))
            if len(batch) > 1 and attempts[0] > 0:
                middle = len(batch) // 2
                outcomes += self._isolate(batch[:middle], attempts)
                outcomes += self._isolate(batch[middle:], attempts)
            else:
                failure = EngineError(f"The {self._name} failed on these rows.")
                failure.__cause__ = error
                outcomes += [(share, failure) for share in batch]
            return outcomes
        start = 0
        for share in batch:
            stop = start + share.rows
            outcomes.append((share, tuple(o if o is None else o[start:stop] for o in outputs)))
            start = stop
        return outcomes

    def _still_wanted(self, batch: list[BatchItem]) -> tuple[list[BatchItem], list[Outcome]]:
        """The last check before the run: without the cancelled, and the expired as outcomes."""
        now = self._clock()
        alive = [share for share in batch if not share.entry.dead]
        late = [share for share in alive if share.entry.deadline <= now]
        if late:
            alive = [share for share in alive if share.entry.deadline > now]
        return alive, [(share, self.expired()) for share in late]

    def _timed(self, batch: list[BatchItem]) -> Outputs:
        rows = sum(share.rows for share in batch)
        began, me = time.perf_counter(), threading.get_ident()
        self._began[me] = time.monotonic()
        try:
            outputs = self._run(batch)
        finally:
            del self._began[me]
        ended = time.perf_counter()
        # While another thread's run held the device, this one waited: that time is not its own.
        seconds, self._ended = ended - max(began, self._ended), ended
        for output in outputs:
            if output is not None and len(output) != rows:
                raise EngineError(f"{rows} rows went in and {len(output)} came out.")
        self.failures = 0
        self._learn(sum(share.rows * share.entry.weight for share in batch), seconds)
        self._run_seconds.observe(seconds)
        self._busy.inc(seconds)
        self._batch_rows.observe(rows)
        self._batch_fill.observe(rows / self._most_rows)
        return outputs
