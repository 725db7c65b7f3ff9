"""Pods under traffic, second by second: what they answer, shed, and say of themselves.

A fluid model: each pod answers up to what `latentd plan` says of it, what comes beyond waits, and
what would wait longer than callers do is shed. Rows also wait below that, while a batch runs:
half of a batch in the mean, whose size follows from the measured costs.
"""

from __future__ import annotations

import csv
import itertools
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from autoscaler import SYNC_SECONDS, Autoscaler, Rules

from serving.batching.rowqueue import MARGIN
from serving.process.sizing import CALL_SECONDS, Demand, Need, need
from serving.runtime.tuning import Cost
from serving.settings import Settings

TRAFFIC = Path(__file__).with_name("traffic.csv")

COSTS = [Cost(1, 284e-6), Cost(2, 498e-6), Cost(4, 938e-6), Cost(8, 1767e-6), Cost(16, 3266e-6)]
"""The decoder of tests/bench's convolutional net, measured on one thread of a Zen 4."""
WORKERS = 2
PATIENCE = 1.0  # seconds that callers wait
STARTS_SECONDS = 30  # from a pod's being wanted until it is ready
SCRAPE_SECONDS = 15
MEAN_SECONDS = 60  # that a metric is a mean of
LATE_SECONDS = 15  # of what the autoscaler sees

ROW_SECONDS = (COSTS[-1].seconds - COSTS[0].seconds) / (COSTS[-1].rows - 1)
BATCH_SECONDS = COSTS[0].seconds - ROW_SECONDS


def planned() -> Need:
    """What `latentd plan` says of one row a call."""
    tuned = SimpleNamespace(costs=COSTS, batch_rows=COSTS[-1].rows)
    # All that is asked of it.
    prepared = SimpleNamespace(encoder=tuned, decoder=tuned, reconstructor=None)
    return need(Demand("sample", 1, 1, 0.6), prepared, Settings(workers=WORKERS), 0)


CAPACITY = WORKERS / planned().seconds  # calls a second of a pod
QUEUE = CAPACITY * PATIENCE / MARGIN  # rows that wait at the most


def read_traffic() -> list[float]:
    """Calls a second, one number for each second."""
    lines = TRAFFIC.read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    points = [(int(row["second"]), float(row["calls_per_second"])) for row in rows]
    calls: list[float] = []
    for (at, now), (until, then) in itertools.pairwise(points):
        calls += [now + (then - now) * step / (until - at) for step in range(until - at)]
    return calls


@dataclass
class Pod:
    ready_at: float
    waiting: float = 0.0
    said: deque[dict[str, float]] = field(default_factory=deque)

    def serve(self, calls: float) -> float:
        """A second of so many calls; returns how many were shed."""
        total = self.waiting + calls
        answered = min(total, CAPACITY)
        shed = max(total - answered - QUEUE, 0.0)
        self.waiting = total - answered - shed
        each = min(calls, CAPACITY) / WORKERS  # of a worker
        used = each * (CALL_SECONDS + ROW_SECONDS)
        batch = min(each * BATCH_SECONDS / max(1 - used, 1e-3), COSTS[-1].rows)
        queue = min(self.waiting + WORKERS * batch / 2, QUEUE)
        self.now = {
            "latentd_queue_rows": queue,
            "cpu": answered / CAPACITY,
            "latentd_engine_busy_ratio": answered
            / CAPACITY
            * (1 - CALL_SECONDS * CAPACITY / WORKERS),
        }
        return shed

    def metrics(self) -> dict[str, float]:
        """The means that are to be had now."""
        late = len(self.said) - LATE_SECONDS // SCRAPE_SECONDS
        known = list(self.said)[: max(late, 1)][-MEAN_SECONDS // SCRAPE_SECONDS :]
        return {name: sum(one[name] for one in known) / len(known) for name in known[0]}


@dataclass
class Run:
    """What came of it."""

    calls: float = 0.0
    shed: list[float] = field(default_factory=list)  # in each second
    replicas: list[int] = field(default_factory=list)
    autoscaler: Autoscaler | None = None

    @property
    def shed_share(self) -> float:
        return sum(self.shed) / self.calls

    @property
    def turns(self) -> int:
        """How often growing was followed by shrinking, or shrinking by growing."""
        ways = [by > 0 for _, by in self.autoscaler.changes]
        return sum(a != b for a, b in itertools.pairwise(ways))

    def regrets(self, seconds: float) -> int:
        """How often a pod was taken away and wanted back within so many seconds."""
        changes = self.autoscaler.changes
        return sum(
            by < 0 < after and then - at < seconds
            for (at, by), (then, after) in itertools.pairwise(changes)
        )


def run(rules: Rules, traffic: list[float], age_seconds: float) -> Run:
    """Scale a fleet by the rules under the traffic; connections live for `age_seconds`."""
    start = max(rules.least, round(traffic[0] / CAPACITY / 0.6))
    autoscaler, result = Autoscaler(rules, start), Run()
    pods = [Pod(-age_seconds) for _ in range(start)]
    for second, calls in enumerate(traffic):
        # Callers find a new pod as their connections end of age.
        weights = [min(max((second - pod.ready_at) / age_seconds, 0.0), 1.0) for pod in pods]
        whole = sum(weights)
        shed = sum(
            pod.serve(calls * weight / whole) for pod, weight in zip(pods, weights, strict=True)
        )
        result.calls += calls
        result.shed.append(shed)
        result.replicas.append(len(pods))
        if second % SCRAPE_SECONDS == 0:
            for pod in pods:
                if pod.ready_at <= second:
                    pod.said.append(pod.now)
        if second % SYNC_SECONDS == SYNC_SECONDS - 1:
            wanted = autoscaler.sync(second, [pod.metrics() if pod.said else None for pod in pods])
            pods += [Pod(second + STARTS_SECONDS) for _ in range(wanted - len(pods))]
            del pods[wanted:]  # the newest: those that are not ready first, as Kubernetes does
    result.autoscaler = autoscaler
    return result
