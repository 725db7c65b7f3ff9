"""How large a batch should be: measured on this machine at start-up, not guessed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

ENOUGH: Final = 0.95
"""Share of the best throughput that is as good as the best."""
SHORT: Final = 0.1
"""Share of the longest run allowed that nobody minds waiting for."""
ONE_THREAD_SECONDS: Final = 0.002
"""A graph that takes no longer for one row gets one thread: waking a second one for it costs more
than it saves, and the CPUs are wanted for receiving and answering."""
_RUNS: Final = 5
_BYTES: Final = 256 << 20  # of input and output in one batch, at the most


@dataclass(frozen=True, slots=True)
class Cost:
    """What one batch of `rows` rows takes, in seconds: the fastest of several runs.

    The fastest, for what slows the others down is the machine's other work, not the graph's.
    """

    rows: int
    seconds: float


def measure(run: Callable[[int], object], row_bytes: int, most_seconds: float) -> list[Cost]:
    """Time `run`, which runs a batch of so many rows, for 1, 2, 4, ... rows, until one batch takes
    longer than `most_seconds`.

    Also warms the graph: its arenas have their final size afterwards.
    """
    costs: list[Cost] = []
    rows = 1
    while rows <= 4096 and (rows == 1 or rows * row_bytes <= _BYTES):
        run(rows)  # the first run of a shape allocates
        times = []
        for _ in range(_RUNS):
            began = time.perf_counter()
            run(rows)
            times.append(time.perf_counter() - began)
        costs.append(Cost(rows, min(times)))
        if costs[-1].seconds > most_seconds:
            break
        rows *= 2
    return costs


def best_rows(costs: Sequence[Cost], most_seconds: float) -> int:
    """How many rows a batch should hold at the most.

    Of those with nearly the best throughput among the batches within `most_seconds`: the largest
    that is short, for a batch must also hold whole requests; else the smallest, for it waits least.
    """
    within = [cost for cost in costs if cost.seconds <= most_seconds] or list(costs[:1])
    best = max(cost.rows / cost.seconds for cost in within)
    good = [cost for cost in within if cost.rows / cost.seconds >= ENOUGH * best]
    short = [cost.rows for cost in good if cost.seconds <= most_seconds * SHORT]
    return max(short, default=good[0].rows)


def seconds_of(rows: int, costs: Sequence[Cost]) -> float:
    """What a batch of `rows` takes, by the measured batch nearest to it."""
    nearest = min(costs, key=lambda cost: abs(cost.rows - rows))
    return nearest.seconds * rows / nearest.rows
