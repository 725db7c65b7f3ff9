"""How large a batch should be: measured on this machine at start-up, not guessed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

GOOD_ENOUGH: Final = 0.95
"""Share of the best throughput that is as good as the best."""
SHORT: Final = 0.1
"""Share of the longest run allowed that nobody minds waiting for."""
BACKGROUND_SECONDS: Final = 0.0005
"""Seconds until a batch is over that an interactive row hardly notices having waited for."""
ONE_THREAD_SECONDS: Final = 0.002
"""A graph that takes no longer for one row gets one thread: waking a second one for it costs more
than it saves, and the CPUs are wanted for receiving and answering."""
MAX_DRIFT: Final = 4.0
"""A batch that takes as many times what a curve says, at the most, is as the curve says: a machine
that serves meanwhile is not quiet, and to measure anew would disturb it more."""
_RUNS: Final = 5
_BYTES: Final = 256 << 20  # of input and output in one batch, at the most


@dataclass(frozen=True, slots=True)
class BatchTiming:
    """What one batch of `rows` rows takes, in seconds: the fastest of several runs.

    The fastest, for what slows the others down is the machine's other work, not the graph's.
    """

    rows: int
    seconds: float


@contextmanager
def throttled(rest: float) -> Iterator[None]:
    """Do what is inside, then rest `rest` times as long: those who serve get the CPUs back, and
    their queues empty before the next step."""
    began = time.perf_counter()
    yield
    time.sleep(rest * (time.perf_counter() - began))


def measure(
    run: Callable[[int], object], row_bytes: int, most_seconds: float, rest: float = 0.0
) -> list[BatchTiming]:
    """Time `run`, which runs a batch of so many rows, for 1, 2, 4, ... rows, until one batch takes
    longer than `most_seconds`.

    rest: after each run, as in `resting`.
    """
    costs: list[BatchTiming] = []
    rows = 1
    while rows <= 4096 and (rows == 1 or rows * row_bytes <= _BYTES):
        costs.append(_time(run, rows, rest))
        if costs[-1].seconds > most_seconds:
            break
        rows *= 2
    return costs


def profile_still_valid(
    run: Callable[[int], object], costs: Sequence[BatchTiming], rows: int, rest: float
) -> bool:
    """Whether a curve that another graph gave tells what `run` costs, as far as one row shows.

    Also warms the graph, up to `rows`. One that is faster than the curve says is as good: the curve
    errs to the safe side.
    """
    with throttled(rest):
        run(rows)
    return _time(run, 1, rest).seconds <= MAX_DRIFT * costs[0].seconds


def _time(run: Callable[[int], object], rows: int, rest: float) -> BatchTiming:
    run(rows)  # the first run of a shape allocates
    times = []
    for _ in range(_RUNS):
        with throttled(rest):
            began = time.perf_counter()
            run(rows)
            times.append(time.perf_counter() - began)
    return BatchTiming(rows, min(times))


def choose_batch_size(costs: Sequence[BatchTiming], most_seconds: float) -> int:
    """How many rows a batch should hold at the most.

    Of those with nearly the best throughput among the batches within `most_seconds`: the largest
    that is short, for a batch must also hold whole requests; else the smallest, for it waits least.
    """
    within = [cost for cost in costs if cost.seconds <= most_seconds] or list(costs[:1])
    best = max(cost.rows / cost.seconds for cost in within)
    good = [cost for cost in within if cost.rows / cost.seconds >= GOOD_ENOUGH * best]
    short = [cost.rows for cost in good if cost.seconds <= most_seconds * SHORT]
    return max(short, default=good[0].rows)


def background_batch_rows(costs: Sequence[BatchTiming]) -> int:
    """The most rows of a batch that is soon over: within SOON, or half as long again as one row."""
    most = max(BACKGROUND_SECONDS, 1.5 * costs[0].seconds)
    return max(cost.rows for cost in costs if cost.seconds <= most)


def seconds_of(rows: int, costs: Sequence[BatchTiming]) -> float:
    """What a batch of `rows` takes, by the measured batch nearest to it."""
    nearest = min(costs, key=lambda cost: abs(cost.rows - rows))
    return nearest.seconds * rows / nearest.rows
