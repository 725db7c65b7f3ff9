"""Record each call when it ends: metrics, trailing metadata, access log, trace."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

import grpc

from latentd.calls.stats import REQUEST_ID, CallStats
from latentd.metrics import Metrics
from latentd.transport.status import Status
from latentd.transport.tracing import Tracer

log = logging.getLogger(__name__)

TIMING: Final = "server-timing"
_DURATIONS: Final = 'queue;dur=%.3f, run;dur=%.3f, total;dur=%.3f, rows;desc="%d"'
"""Value of W3C's Server-Timing header; durations are milliseconds."""


class CallRecorder:
    """Records the calls of one method.

    access_log: which calls are logged: none | errors | all
    tracer:     None: calls are not traced
    """

    def __init__(
        self, method: str, metrics: Metrics, access_log: str, tracer: Tracer | None
    ) -> None:
        self._method, self._metrics = method, metrics
        self._access_log, self._tracer = access_log, tracer
        self._seconds = metrics.request_seconds.labels(method)
        self._succeeded: dict[str, Any] = {}  # counters of calls that ended with OK, by model

    def start(self, stats: CallStats) -> None:
        """A call starts: its stats keep each batch's span if calls are traced."""
        if self._tracer is not None:
            stats.spans = []

    def finish(self, stats: CallStats, started_at: float, served_by: Any, status: Status) -> Status:
        """Record a call that has ended; returns its status with the cost added to the trailers.

        started_at: when its message was complete, on time.monotonic's clock
        served_by:  the response's ModelVersion; None: there is no response
        """
        seconds = time.monotonic() - started_at
        model, version = (served_by.model, served_by.version) if served_by is not None else ("", 0)
        ok = status.code is grpc.StatusCode.OK
        counter = self._succeeded.get(model) if ok else None
        if counter is None:
            counter = self._metrics.requests.labels(self._method, model, status.code.name)
            if ok:
                self._succeeded[model] = counter
        counter.inc()
        self._seconds.observe(seconds)
        rows, queued, ran = stats.totals()
        if self._access_log == "all" or (self._access_log == "errors" and not ok):
            self._log(stats, model, version, status.code.name, seconds)
        if self._tracer is not None:
            self._tracer.export_call(
                self._method, stats, started_at, seconds, model, version, status.code
            )
        timing = _DURATIONS % (queued * 1e3, ran * 1e3, seconds * 1e3, rows)
        if model:
            timing += f', model;desc="{model}/{version}"'
        status.trailers += ((REQUEST_ID, stats.request_id), (TIMING, timing))
        return status

    def _log(self, stats: CallStats, model: str, version: int, code: str, seconds: float) -> None:
        rows, queued, ran = stats.totals()
        fields = {
            "request_id": stats.request_id,
            "method": self._method,
            "code": code,
            "model": model,
            "version": version,
            "rows": rows,
            "queue_ms": round(queued * 1e3, 3),
            "run_ms": round(ran * 1e3, 3),
            "total_ms": round(seconds * 1e3, 3),
        }
        of_model = f" of {model} version {version}" if model else ""
        # A text log shows all of it in the sentence; a JSON log also has each value as a field.
        log.info(
            f"{self._method} {code}: %(rows)d row(s){of_model}, queue %(queue_ms).3f ms, "
            "run %(run_ms).3f ms, total %(total_ms).3f ms, request id %(request_id)s.",
            fields,
            extra={"fields": fields},
        )
