"""How large a batch should be: measured on this machine when a model is loaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

GOOD_ENOUGH: Final = 0.95
"""A batch with this share of the best throughput counts as equally good."""
SHORT: Final = 0.1
"""A batch within this share of the longest allowed time is short: waiting for it does not hurt."""
BACKGROUND_SECONDS: Final = 0.0005
"""A background batch of this length hardly delays an interactive row that arrives during it."""
ONE_THREAD_SECONDS: Final = 0.002
"""A graph that takes no longer for one row gets one thread: waking a second thread costs more than
it saves, and receiving calls and sending responses needs the CPUs."""
MAX_DRIFT: Final = 4.0
"""A known profile stays valid while a batch takes at most so many times what it says: a machine
that serves meanwhile is not quiet, and a new measurement would disturb it more."""
Clock = Callable[[], float]
"""Seconds of wall time, or of this thread's CPU time if the whole run is its own: what else the
machine does then costs a batch nothing."""
_RUNS: Final = 5
_MAX_BYTES: Final = 256 << 20  # of input and output in one batch


@dataclass(frozen=True, slots=True)
class BatchTiming:
    """The seconds that one batch of `rows` rows takes: the fastest of several runs.

    The fastest, because the machine's other work slows the others down, not the graph.
    """

    rows: int
    seconds: float


@contextmanager
def throttled(idle_ratio: float) -> Iterator[None]:
    """Run the block, then sleep `idle_ratio` times as long. Threads that serve get the CPUs
    meanwhile, and their queues empty before the next step."""
    start = time.perf_counter()
    yield
    time.sleep(idle_ratio * (time.perf_counter() - start))


def measure(
    run: Callable[[int], object],
    row_bytes: int,
    max_seconds: float,
    idle_ratio: float = 0.0,
    clock: Clock = time.perf_counter,
) -> list[BatchTiming]:
    """Time `run`, which runs a batch of so many rows, for 1, 2, 4, ... rows, until one batch takes
    longer than `max_seconds`.

    idle_ratio: as in `throttled`, after each run.
    """
    timings: list[BatchTiming] = []
    rows = 1
    while rows <= 4096 and (rows == 1 or rows * row_bytes <= _MAX_BYTES):
        timings.append(_time(run, rows, idle_ratio, clock))
        if timings[-1].seconds > max_seconds:
            break
        rows *= 2
    return timings


def profile_still_valid(
    run: Callable[[int], object],
    timings: Sequence[BatchTiming],
    rows: int,
    idle_ratio: float,
    clock: Clock = time.perf_counter,
) -> bool:
    """Whether the timings of another graph hold for `run`, judged by one row.

    Also warms the graph, up to `rows`. A faster graph passes: the timings then err on the safe
    side.
    """
    with throttled(idle_ratio):
        run(rows)
    return _time(run, 1, idle_ratio, clock).seconds <= MAX_DRIFT * timings[0].seconds


def _time(run: Callable[[int], object], rows: int, idle_ratio: float, clock: Clock) -> BatchTiming:
    run(rows)  # the first run of a shape allocates
    times, wall_times = [], []
    for _ in range(_RUNS):
        with throttled(idle_ratio):
            start, wall_start = clock(), time.perf_counter()
            run(rows)
            times.append(clock() - start)
            wall_times.append(time.perf_counter() - wall_start)
    # In gVisor CPU time advances by 10 ms: a short batch takes none of it.
    return BatchTiming(rows, min(times) or min(wall_times))


def choose_batch_size(timings: Sequence[BatchTiming], max_seconds: float) -> int:
    """How many rows a batch should hold at most.

    Candidates are the batches within `max_seconds` with nearly the best throughput. Of these, the
    largest short one, because a batch must also hold whole requests. If none is short, the
    smallest, because it waits least.
    """
    within = [t for t in timings if t.seconds <= max_seconds] or list(timings[:1])
    best = max(t.rows / t.seconds for t in within)
    good = [t for t in within if t.rows / t.seconds >= GOOD_ENOUGH * best]
    short = [t.rows for t in good if t.seconds <= max_seconds * SHORT]
    return max(short, default=good[0].rows)


def background_batch_rows(timings: Sequence[BatchTiming]) -> int:
    """The largest batch that takes at most BACKGROUND_SECONDS, or 1.5 times as long as one row."""
    max_seconds = max(BACKGROUND_SECONDS, 1.5 * timings[0].seconds)
    return max(t.rows for t in timings if t.seconds <= max_seconds)


def seconds_of(rows: int, timings: Sequence[BatchTiming]) -> float:
    """The seconds that a batch of `rows` takes, estimated from the nearest measured batch."""
    nearest = min(timings, key=lambda timing: abs(timing.rows - rows))
    return nearest.seconds * rows / nearest.rows
