"""Defines every metric, its labels and its buckets.

The registry is a parameter, so that each test has its own. Each worker has its own too;
latentd.process.worker_metrics combines them.
"""

from __future__ import annotations

import collections
from bisect import bisect_left
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final, Literal

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge

MultiprocessMode = Literal["sum", "max", "min"]
"""How a gauge of several workers is combined."""

SECONDS: Final = (
    *(50e-6, 100e-6, 200e-6, 500e-6),
    *(1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
RATIO: Final = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


MAX_OBSERVED: Final = 1024
"""Observations of a series that wait at most."""


class Histogram(prometheus_client.Histogram):
    """A histogram that adds up its observations in bulk: when many wait, and at each scrape.

    So an observation costs a call an append. Thread-safe. It uses names that prometheus-client does
    not publish (_metric_init, _child_samples, _upper_bounds, _buckets, _sum); its tests show if
    they change.
    """

    def _metric_init(self) -> None:
        super()._metric_init()
        self._observed: collections.deque[float] = collections.deque()

    def observe(self, amount: float, exemplar: object = None) -> None:
        """As of prometheus-client's; there are no exemplars."""
        self._observed.append(amount)
        if len(self._observed) >= MAX_OBSERVED:
            self._add_observed()

    def _child_samples(self) -> Iterable[Any]:
        self._add_observed()
        return super()._child_samples()

    def _add_observed(self) -> None:
        amounts: list[float] = []
        with suppress(IndexError):  # another thread may add some of them
            while True:
                amounts.append(self._observed.popleft())
        buckets = collections.Counter(bisect_left(self._upper_bounds, each) for each in amounts)
        for bucket, number in buckets.items():
            self._buckets[bucket].inc(number)
        self._sum.inc(sum(amounts))


class Metrics:
    """The metrics of one process, registered in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"latentd_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str, mode: MultiprocessMode = "max") -> Gauge:
            self.multiprocess_modes[f"latentd_{name}"] = mode
            return Gauge(f"latentd_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"latentd_{name}", text, labels, buckets=buckets, registry=registry)

        self.registry = registry
        self.multiprocess_modes: dict[str, MultiprocessMode] = {}  # by the gauge's name
        self.requests = counter(
            "requests_total", "Calls completed, by gRPC status code.", "method", "model", "code"
        )
        self.request_seconds = histogram(
            "request_seconds", "Time from the call's arrival to its response.", SECONDS, "method"
        )
        self.queue_duration = histogram(
            "queue_duration_seconds",
            "Time from a request's arrival in the queue until its first row leaves it.",
            SECONDS,
            "graph",
        )
        self.compute_duration = histogram(
            "compute_duration_seconds",
            "Time of a batch: gather its rows and run the graph.",
            SECONDS,
            "graph",
        )
        self.batch_rows = histogram("batch_rows", "Rows in each batch run.", ROWS, "graph")
        self.batch_fill = histogram(
            "batch_fill_ratio", "How full each batch was, by what its rows cost.", RATIO, "graph"
        )
        self.queue_rows = gauge(
            "queue_rows",
            "Rows waiting now, each counted by its scale.",
            *("graph", "model", "version"),
            mode="sum",
        )
        self.queue_rows_limit = gauge(
            "queue_rows_limit",
            "Rows that may wait before more are shed.",
            *("graph", "model", "version"),
            mode="sum",
        )
        self.queue_oldest = gauge(
            "queue_oldest_seconds",
            "How long the oldest waiting row has waited.",
            "graph",
            "model",
            "version",
        )
        self.dropped = counter(
            "dropped_total", "Requests dropped before they ran.", "graph", "reason"
        )
        self.unsent_response_bytes = gauge(
            "unsent_response_bytes",
            "Memory of responses that clients have not read yet.",
            mode="sum",
        )
        self.responses_dropped = counter(
            "responses_dropped_total",
            "Responses dropped because clients did not read them in time.",
        )
        self.partial_requests_dropped = counter(
            "partial_requests_dropped_total",
            "Calls ended because their messages did not arrive completely.",
        )
        self.shed = counter(
            "shed_total", "Requests rejected by admission or the queue.", "graph", "reason"
        )
        self.failed_batches = counter("failed_batches_total", "Batches whose run failed.", "graph")
        self.nonfinite_rows = counter(
            "nonfinite_rows_total",
            "Rows for which a graph computed NaN or infinity. They are never returned.",
            *("model", "graph"),
        )
        self.engine_busy = counter(
            "engine_busy_seconds_total", "Time spent gathering and running batches.", "graph"
        )
        self.models = gauge(
            "model_info",
            "1 for each version served, with its provider.",
            "model",
            "version",
            "digest",
            "provider",
        )
        self.golden_max_abs_error = gauge(
            "golden_max_abs_error",
            "Largest absolute error against the golden outputs, of float outputs.",
            "model",
            "version",
        )
        self.reloads = counter(
            "reloads_total",
            "Versions loaded, rejected (with the reason) or unloaded.",
            "result",
            "reason",
        )
        self.loading = gauge(
            "loading_versions",
            "Versions that are being tried or loaded now.",
            mode="sum",
        )
        self.loaded_at = gauge(
            "model_loaded_timestamp_seconds", "When the version was loaded.", "model", "version"
        )
        self.last_scan = gauge(
            "repository_last_scan_timestamp_seconds",
            "When the bundle directory was last scanned completely.",
            mode="min",
        )
        self.unloading = gauge(
            "unloading_versions",
            "Versions that finish their calls and are then closed.",
            mode="sum",
        )
        self.max_batch_rows = gauge(
            "max_batch_rows", "Maximum rows in one batch.", "graph", "model", "version"
        )
        self.batch_profile = gauge(
            "batch_profile_seconds",
            "Duration of a batch of this many rows, measured when the version was loaded.",
            *("graph", "model", "version", "rows"),
        )
        self.loop_lag = gauge(
            "event_loop_lag_seconds", "How late the event loop ran its last timer."
        )
        self.faults = gauge(
            "engine_faults",
            "1 while a run hangs or a model fails its self-test.",
            "kind",
        )
        self.workers = gauge("workers", "Processes that serve.", mode="sum")

    def register_callback(self, metric: Gauge, read: Callable[[], float], *labels: str) -> None:
        """Let a gauge call `read` at each scrape."""
        (metric.labels(*labels) if labels else metric).set_function(read)

    def remove_model(self, model: str, version: int) -> None:
        """Remove the series of a version that is no longer served."""
        gone = {"model": model, "version": str(version)}
        of_queues = (self.queue_rows, self.queue_rows_limit, self.queue_oldest)
        of_versions = (self.models, self.loaded_at, self.golden_max_abs_error)
        of_graphs = (self.max_batch_rows, self.batch_profile)
        for metric in (*of_queues, *of_versions, *of_graphs):
            metric.remove_by_labels(gone)


def restarts(registry: CollectorRegistry) -> Counter:
    """The supervisor's own counter."""
    text = "Workers that died and were restarted."
    return Counter("latentd_worker_restarts_total", text, registry=registry)
