"""Combines metrics and health of several workers: the supervisor asks each worker for its own.

Every worker counts in its own memory, and a thread of it responds over a pipe. There are no files
that another program could delete or that killed processes would leave.
"""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Final

from prometheus_client import Metric

from latentd.metrics import Metrics, MultiprocessMode
from latentd.process.heartbeat import MAX_SILENT_SECONDS
from latentd.transport.health import LIVENESS

POLL_SECONDS: Final = 1.0
"""How often the supervisor asks without a scrape: a worker that dies loses at most this much."""
_RESPONSE_SECONDS: Final = 1.0  # a worker that hangs must not delay a scrape for longer

_COMBINE: Final[Mapping[MultiprocessMode, Callable[[float, float], float]]] = {
    "sum": operator.add,
    "max": max,
    "min": min,
}


def respond(
    pipe: Connection[Any, Any], metrics: Metrics, health: Callable[[], Mapping[str, bool]]
) -> None:
    """Send metrics and health whenever the supervisor asks, until it exits; for a thread."""
    try:
        while True:
            pipe.recv()
            page = list(metrics.registry.collect())
            pipe.send((page, metrics.multiprocess_modes, health()))
    except (EOFError, OSError):
        return


class WorkerMetrics:
    """The metrics of all workers, as a collector for prometheus-client's registry; their health.

    Counters and histograms of workers that died stay included; their gauges do not.
    """

    def __init__(self) -> None:
        self._workers: list[_Worker] = []
        self._dead = _Page()
        self._ask_lock = threading.Lock()  # held by a scrape or by `poll`

    def add(self, pipe: Connection[Any, Any]) -> None:
        """Include this worker from now on."""
        self._workers.append(_Worker(pipe))

    def remove(self, pipe: Connection[Any, Any]) -> None:
        """Record that this worker has died; does not block."""
        for worker in self._workers:
            worker.dead = worker.dead or worker.pipe is pipe

    def poll(self, stopping: threading.Event) -> None:
        """Ask every POLL_SECONDS, so that little is lost with a worker that dies; for a thread."""
        while not stopping.wait(POLL_SECONDS):
            with self._ask_lock:
                self._ask()

    def is_serving(self, service: str) -> bool:
        """Whether all workers that report on a service say that it serves, and at least one does.

        A worker that once responded and no longer does serves nothing. For `liveness` no worker
        need have responded: they may be starting.
        """
        # Without the lock the last responses must do; they are hardly older than POLL_SECONDS.
        if self._ask_lock.acquire(timeout=_RESPONSE_SECONDS):
            try:
                self._ask()
            finally:
                self._ask_lock.release()
        words = [word for one in list(self._workers) if (word := one.says(service)) is not None]
        return all(words) and (bool(words) or service == LIVENESS)

    def collect(self) -> Iterable[Metric]:
        """The metrics now; of a worker that does not respond in time, its last ones."""
        page = _Page()
        with self._ask_lock:
            self._ask()
            page.add(self._dead.metrics(), {})
            for worker in self._workers:
                page.add(worker.metrics, worker.modes)
        return page.metrics()

    def _ask(self) -> None:
        self._remove_dead()
        waiting_for = {worker.pipe: worker for worker in self._workers if worker.ask()}
        until = time.monotonic() + _RESPONSE_SECONDS
        while waiting_for and (left := until - time.monotonic()) > 0:
            for pipe in wait(list(waiting_for), left):
                waiting_for.pop(pipe).receive()  # type: ignore[call-overload]  # not sockets, not numbers

    def _remove_dead(self) -> None:
        for worker in [one for one in self._workers if one.dead]:
            self._workers.remove(worker)
            self._dead.add((m for m in worker.metrics if m.type != "gauge"), {})
            worker.pipe.close()


@dataclass(eq=False)
class _Worker:
    pipe: Connection[Any, Any]
    dead: bool = False
    waiting: bool = False  # for its response
    metrics: list[Metric] = field(default_factory=list)
    modes: Mapping[str, MultiprocessMode] = field(default_factory=dict)
    health: Mapping[str, bool] = field(default_factory=dict)
    responded: float = 0.0  # when it did last

    def says(self, service: str) -> bool | None:
        """Whether the service serves, as this worker last said; None: it has not said so far. One
        that has stopped responding serves nothing, whatever it said."""
        if self.dead or not self.health:
            return None
        if self.waiting and time.monotonic() - self.responded > MAX_SILENT_SECONDS:
            return False
        return self.health.get(service)

    def ask(self) -> bool:
        """Ask for the metrics; returns whether a response is expected."""
        if self.waiting and self.pipe.poll():  # late, to an earlier question
            self.receive()
        if self.waiting:
            return True  # do not send more questions to a worker that hangs
        try:
            self.pipe.send(None)
        except OSError:
            return False  # it has died; the supervisor notices that itself
        self.waiting = True
        return True

    def receive(self) -> None:
        """Read the response that has arrived."""
        self.waiting = False
        try:
            self.metrics, self.modes, self.health = self.pipe.recv()
        except (EOFError, OSError):
            return
        self.responded = time.monotonic()


_SampleKey = tuple[str, tuple[tuple[str, str], ...]]  # name and labels


class _Page:
    """The combined metrics of several processes."""

    def __init__(self) -> None:
        self._families: dict[str, tuple[Metric, dict[_SampleKey, float]]] = {}

    def add(self, metrics: Iterable[Metric], modes: Mapping[str, MultiprocessMode]) -> None:
        """Combine with the metrics so far. modes: of gauges, by name; all others are summed."""
        for metric in metrics:
            combine = _COMBINE[modes.get(metric.name, "sum")]
            empty = Metric(metric.name, metric.documentation, metric.type)
            _, values = self._families.setdefault(metric.name, (empty, {}))
            for sample in metric.samples:
                if sample.name.endswith("_created"):
                    continue  # start times of series, which cannot be summed
                key = (sample.name, tuple(sample.labels.items()))
                old = values.get(key)
                values[key] = sample.value if old is None else combine(old, sample.value)

    def metrics(self) -> list[Metric]:
        """The combined metrics, in the order of the first worker."""
        for metric, values in self._families.values():
            metric.samples = []
            for (name, labels), value in values.items():
                metric.add_sample(name, dict(labels), value)
        return [metric for metric, _ in self._families.values()]
