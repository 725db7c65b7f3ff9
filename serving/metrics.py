"""Every metric, its labels and its buckets.

The registry is passed in, so that each test counts for itself. Each of several workers counts for
itself too; latentd.process.worker_metrics adds them up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

MultiprocessMode = Literal["sum", "max", "min"]
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

        def gauge(name: str, text: str, *labels: str, mode: MultiprocessMode = "max") -> Gauge:
            self.multiprocess_modes[f"latentd_{name}"] = mode
            return Gauge(f"latentd_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"latentd_{name}", text, labels, buckets=buckets, registry=registry)

        self.registry = registry
        self.multiprocess_modes: dict[str, MultiprocessMode] = {}  # by the gauge's name
        self.requests = counter(
            "requests_total", "Calls answered, by gRPC status code.", "method", "model", "code"
        )
        self.request_seconds = histogram(
            "request_seconds", "From the call's arrival to its answer.", SECONDS, "method"
        )
        self.queue_duration = histogram(
            "queue_duration_seconds",
            "Time from a request's arrival in the queue until its first row leaves it.",
            SECONDS,
            "graph",
        )
        self.compute_duration = histogram(
            "compute_duration_seconds",
            "Time of a batch: its rows are gathered and the graph runs.",
            SECONDS,
            "graph",
        )
        self.batch_rows = histogram("batch_rows", "Rows in each batch run.", ROWS, "graph")
        self.batch_fill = histogram(
            "batch_fill_ratio", "Rows in each batch over the most it may hold.", RATIO, "graph"
        )
        self.queue_rows = gauge(
            "queue_rows", "Rows waiting now.", "graph", "model", "version", mode="sum"
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
            "dropped_total", "Requests given up before they were run.", "graph", "reason"
        )
        self.unsent_response_bytes = gauge(
            "unsent_response_bytes",
            "Memory of answers that callers have not taken yet.",
            mode="sum",
        )
        self.responses_dropped = counter(
            "responses_dropped_total", "Calls ended because their callers let answers wait."
        )
        self.partial_requests_dropped = counter(
            "partial_requests_dropped_total", "Calls ended because their messages never came whole."
        )
        self.shed = counter("shed_total", "Requests refused at the door.", "graph", "reason")
        self.failed_batches = counter(
            "failed_batches_total", "Runs that raised inside the engine.", "graph"
        )
        self.engine_busy = counter(
            "engine_busy_seconds_total", "Time spent gathering and running batches.", "graph"
        )
        self.models = gauge(
            "model_info",
            "1 for each version served, with where it runs.",
            "model",
            "version",
            "digest",
            "provider",
        )
        self.golden_max_abs_error = gauge(
            "golden_max_abs_error",
            "The largest difference between the golden outputs and this machine's, of floats.",
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
            "When the bundles' folder was last read to its end.",
            mode="min",
        )
        self.unloading = gauge(
            "unloading_versions",
            "Versions that finish their calls and are then closed.",
            mode="sum",
        )
        self.max_batch_rows = gauge(
            "max_batch_rows", "The most rows one batch takes.", "graph", "model", "version"
        )
        self.batch_profile = gauge(
            "batch_profile_seconds",
            "What a batch of so many rows took when the version was loaded.",
            *("graph", "model", "version", "rows"),
        )
        self.loop_lag = gauge(
            "event_loop_lag_seconds", "How late the event loop last woke a timer: its backlog."
        )
        self.faults = gauge(
            "engine_faults",
            "1 while a run hangs, or a graph fails on whatever it is given.",
            "kind",
        )
        self.workers = gauge("workers", "Processes that serve.", mode="sum")

    def register_callback(self, metric: Gauge, read: Callable[[], float], *labels: str) -> None:
        """Let a gauge say what `read` gives whenever it is asked."""
        (metric.labels(*labels) if labels else metric).set_function(read)

    def remove_model(self, model: str, version: int) -> None:
        """Drop what was said of a version that is served no more."""
        gone = {"model": model, "version": str(version)}
        of_queues = (self.queue_rows, self.queue_rows_limit, self.queue_oldest)
        of_versions = (self.models, self.loaded_at, self.golden_max_abs_error)
        of_lanes = (self.max_batch_rows, self.batch_profile)
        for metric in (*of_queues, *of_versions, *of_lanes):
            metric.remove_by_labels(gone)


def restarts(registry: CollectorRegistry) -> Counter:
    """What the supervisor of several workers counts."""
    text = "Workers that died and were replaced."
    return Counter("latentd_worker_restarts_total", text, registry=registry)
