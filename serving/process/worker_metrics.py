"""The metrics of several workers on one page: the supervisor asks each worker, and adds up.

Every worker counts in its own memory and answers over a pipe and in a thread of its own. Nothing
lies in files, so nothing can be cleaned away, and nothing stays behind when processes are killed.
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

KEEP_SECONDS: Final = 1.0
"""How often the supervisor asks when nobody scrapes: a worker that dies takes no more with it."""
_ANSWER_SECONDS: Final = 1.0  # a worker that hangs must not keep the page from Prometheus for long

_COMBINE: Final[Mapping[MultiprocessMode, Callable[[float, float], float]]] = {
    "sum": operator.add,
    "max": max,
    "min": min,
}


def answer(pipe: Connection[Any, Any], metrics: Metrics) -> None:
    """Answer the supervisor's questions until it is gone; for a thread of the worker."""
    try:
        while True:
            pipe.recv()
            pipe.send((list(metrics.registry.collect()), metrics.together))
    except (EOFError, OSError):
        return


class WorkerMetrics:
    """What all workers have counted, as a collector for prometheus-client's registry.

    Counters and histograms of workers that died are kept; their gauges are left out.
    """

    def __init__(self) -> None:
        self._workers: list[_Worker] = []
        self._dead = _Page()
        self._asking = threading.Lock()  # by one thread at a time: a scrape, or `keep`

    def add(self, pipe: Connection[Any, Any]) -> None:
        """Ask this worker too from now on."""
        self._workers.append(_Worker(pipe))

    def remove(self, pipe: Connection[Any, Any]) -> None:
        """This worker has died. Returns at once, also while others are being asked."""
        for worker in self._workers:
            worker.dead = worker.dead or worker.pipe is pipe

    def keep(self, stopping: threading.Event) -> None:
        """Ask again and again, so that little is lost with a worker that dies; for a thread."""
        while not stopping.wait(KEEP_SECONDS):
            with self._asking:
                self._ask()

    def collect(self) -> Iterable[Metric]:
        """The page, asked for now; a worker that does not answer in time stands with its last."""
        page = _Page()
        with self._asking:
            self._ask()
            page.add(self._dead.metrics(), {})
            for worker in self._workers:
                page.add(worker.metrics, worker.together)
        return page.metrics()

    def _ask(self) -> None:
        self._bury()
        unanswered = {worker.pipe: worker for worker in self._workers if worker.ask()}
        until = time.monotonic() + _ANSWER_SECONDS
        while unanswered and (left := until - time.monotonic()) > 0:
            for pipe in wait(list(unanswered), left):
                unanswered.pop(pipe).set_header()  # type: ignore[call-overload]  # not sockets, not numbers

    def _bury(self) -> None:
        for worker in [one for one in self._workers if one.dead]:
            self._workers.remove(worker)
            self._dead.add((m for m in worker.metrics if m.type != "gauge"), {})
            worker.pipe.close()


@dataclass(eq=False)
class _Worker:
    pipe: Connection[Any, Any]
    dead: bool = False
    asked: bool = False  # and has not answered yet
    metrics: list[Metric] = field(default_factory=list)
    together: Mapping[str, MultiprocessMode] = field(default_factory=dict)

    def ask(self) -> bool:
        """Whether an answer to a new question is under way."""
        if self.asked and self.pipe.poll():  # late, of an earlier question
            self.set_header()
        if self.asked:
            return True  # still the earlier one: questions to a worker that hangs do not pile up
        try:
            self.pipe.send(None)
        except OSError:
            return False  # it is dying, which its supervisor finds out
        self.asked = True
        return True

    def set_header(self) -> None:
        """Read the answer that has come."""
        self.asked = False
        try:
            self.metrics, self.together = self.pipe.recv()
        except (EOFError, OSError):
            return


_Sample = tuple[str, tuple[tuple[str, str], ...]]  # name and labels


class _Page:
    """Metrics of several processes, each sample once."""

    def __init__(self) -> None:
        self._families: dict[str, tuple[Metric, dict[_Sample, float]]] = {}

    def add(self, metrics: Iterable[Metric], together: Mapping[str, MultiprocessMode]) -> None:
        """Combine with what is there; together: of the gauges, by name. All others are added."""
        for metric in metrics:
            combine = _COMBINE[together.get(metric.name, "sum")]
            empty = Metric(metric.name, metric.documentation, metric.type)
            _, values = self._families.setdefault(metric.name, (empty, {}))
            for sample in metric.samples:
                if sample.name.endswith("_created"):
                    continue  # the times when series began, which have no sum
                key = (sample.name, tuple(sample.labels.items()))
                old = values.get(key)
                values[key] = sample.value if old is None else combine(old, sample.value)

    def metrics(self) -> list[Metric]:
        """In the order of their first worker."""
        for metric, values in self._families.values():
            metric.samples = []
            for (name, labels), value in values.items():
                metric.add_sample(name, dict(labels), value)
        return [metric for metric, _ in self._families.values()]
