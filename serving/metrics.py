"""Every metric, its labels and its buckets.

The registry is passed in, so that each test counts for itself. Each of several workers counts for
itself too; serving.process.workermetrics adds them up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

Together = Literal["sum", "max", "min"]
"""What one gauge of several workers says."""

SECONDS: Final = (
    *(50e-6, 100e-6, 200e-6, 500e-6),
    *(1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
RATIO: Final = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


class Metrics:
    """The metrics of one process, registered in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"latentd_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str, together: Together = "max") -> Gauge:
            self.together[f"latentd_{name}"] = together
            return Gauge(f"latentd_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"latentd_{name}", text, labels, buckets=buckets, registry=registry)

        self.registry = registry
        self.together: dict[str, Together] = {}  # by the gauge's name
        self.requests = counter(
            "requests_total", "Calls answered, by gRPC status code.", "method", "model", "code"
        )
        self.request_seconds = histogram(
            "request_seconds", "From the call's arrival to its answer.", SECONDS, "method"
        )
        self.stage_seconds = histogram(
            "stage_seconds",
            "Where time goes: queue (of a request, until its first row leaves the queue) and run "
            "(of a batch: gathering its rows and running the graph).",
            SECONDS,
            "stage",
            "lane",
        )
        self.batch_rows = histogram("batch_rows", "Rows in each batch run.", ROWS, "lane")
        self.batch_fill = histogram(
            "batch_fill_ratio", "Rows in each batch over the most it may hold.", RATIO, "lane"
        )
        self.queue_rows = gauge(
            "queue_rows", "Rows waiting now.", "lane", "model", "version", together="sum"
        )
        self.queue_most = gauge(
            "queue_rows_most",
            "Rows that may wait before more are shed.",
            *("lane", "model", "version"),
            together="sum",
        )
        self.queue_oldest = gauge(
            "queue_oldest_seconds",
            "How long the oldest waiting row has waited.",
            "lane",
            "model",
            "version",
        )
        self.dropped = counter(
            "dropped_total", "Requests given up before they were run.", "lane", "reason"
        )
        self.answer_bytes = gauge(
            "answer_bytes",
            "Memory of answers that callers have not taken yet.",
            together="sum",
        )
        self.given_up = counter(
            "answers_given_up_total", "Calls ended because their callers let answers wait."
        )
        self.requests_given_up = counter(
            "requests_given_up_total", "Calls ended because their messages never came whole."
        )
        self.shed = counter("shed_total", "Requests refused at the door.", "lane", "reason")
        self.failed_batches = counter(
            "failed_batches_total", "Runs that raised inside the engine.", "lane"
        )
        self.engine_busy = counter(
            "engine_busy_seconds_total", "Time spent gathering and running batches.", "lane"
        )
        self.models = gauge(
            "model_info",
            "1 for each version served, with where it runs.",
            "model",
            "version",
            "digest",
            "provider",
        )
        self.golden_difference = gauge(
            "golden_difference",
            "The largest difference between the golden outputs and this machine's, of floats.",
            "model",
            "version",
        )
        self.reloads = counter(
            "reloads_total",
            "Versions loaded, refused (with the reason) or retired.",
            "result",
            "reason",
        )
        self.loading = gauge(
            "loading_versions",
            "Versions that are being tried or loaded now.",
            together="sum",
        )
        self.loaded_at = gauge(
            "model_loaded_timestamp_seconds", "When the version was loaded.", "model", "version"
        )
        self.looked_at = gauge(
            "last_look_timestamp_seconds",
            "When the bundles' folder was last read to its end.",
            together="min",
        )
        self.retiring = gauge(
            "retiring_versions",
            "Versions that calls still hold and nobody finds any more.",
            together="sum",
        )
        self.batch_most = gauge(
            "batch_rows_most", "The most rows one batch takes.", "lane", "model", "version"
        )
        self.batch_cost = gauge(
            "batch_cost_seconds",
            "What a batch of so many rows took when the version was loaded.",
            *("lane", "model", "version", "rows"),
        )
        self.loop_lag = gauge(
            "event_loop_lag_seconds", "How late the event loop last woke a timer: its backlog."
        )
        self.faults = gauge(
            "engine_faults",
            "1 while a run hangs, or a graph fails on whatever it is given.",
            "kind",
        )
        self.workers = gauge("workers", "Processes that serve.", together="sum")

    def probe(self, metric: Gauge, read: Callable[[], float], *labels: str) -> None:
        """Let a gauge say what `read` gives whenever it is asked."""
        (metric.labels(*labels) if labels else metric).set_function(read)

    def forget(self, model: str, version: int) -> None:
        """Drop what was said of a version that is served no more."""
        gone = {"model": model, "version": str(version)}
        of_queues = (self.queue_rows, self.queue_most, self.queue_oldest)
        of_versions = (self.models, self.loaded_at, self.golden_difference)
        of_lanes = (self.batch_most, self.batch_cost)
        for metric in (*of_queues, *of_versions, *of_lanes):
            metric.remove_by_labels(gone)


def restarts(registry: CollectorRegistry) -> Counter:
    """What the supervisor of several workers counts."""
    text = "Workers that died and were replaced."
    return Counter("latentd_worker_restarts_total", text, registry=registry)
