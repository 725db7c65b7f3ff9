"""How large a batch should be: measured on this machine at start-up, not guessed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from serving.engine import Graph, warm_up_input

ENOUGH: Final = 0.95
"""Share of the best throughput that is as good as the best: the smaller batch waits less."""
_RUNS: Final = 5
_BYTES: Final = 256 << 20  # of input and output in one batch, at the most


@dataclass(frozen=True, slots=True)
class Cost:
    """What one batch of `rows` rows takes, in seconds: the fastest of several runs.

    The fastest, for what slows the others down is the machine's other work, not the graph's.
    """

    rows: int
    seconds: float


def measure(
    graph: Graph, outputs: Sequence[str], row_bytes: int, most_seconds: float
) -> list[Cost]:
    """Time batches of 1, 2, 4, ... rows until one takes longer than `most_seconds`.

    Also warms the graph: its arenas have their final size afterwards.
    """
    costs: list[Cost] = []
    rows = 1
    while rows <= 4096 and (rows == 1 or rows * row_bytes <= _BYTES):
        batch = warm_up_input(graph.signature, rows)
        graph.run(batch, outputs)  # the first run of a shape allocates
        times = []
        for _ in range(_RUNS):
            began = time.perf_counter()
            graph.run(batch, outputs)
            times.append(time.perf_counter() - began)
        costs.append(Cost(rows, min(times)))
        if costs[-1].seconds > most_seconds:
            break
        rows *= 2
    return costs


def knee(costs: Sequence[Cost], most_seconds: float) -> int:
    """The smallest batch whose throughput is nearly the best among those within `most_seconds`."""
    within = [cost for cost in costs if cost.seconds <= most_seconds] or list(costs[:1])
    best = max(cost.rows / cost.seconds for cost in within)
    return min(cost.rows for cost in within if cost.rows / cost.seconds >= ENOUGH * best)
