"""Where calls are entered when they end: metrics, trailers, the log, the trace."""

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
"""Of W3C's header of that name; durations are milliseconds."""


class CallRecorder:
    """The calls of one method.

    says:   of which calls a line is logged: none | failed | all
    tracer: None: nobody traces
    """

    def __init__(self, method: str, metrics: Metrics, says: str, tracer: Tracer | None) -> None:
        self._method, self._metrics, self._says, self._tracer = method, metrics, says, tracer
        self._seconds = metrics.request_seconds.labels(method)
        self._answered: dict[tuple[str, grpc.StatusCode], Any] = {}

    def open(self, stats: CallStats) -> None:
        """Let a call that begins remember what will be asked of it."""
        if self._tracer is not None:
            stats.spans = []

    def enter(self, stats: CallStats, began: float, served_by: Any, status: Status) -> Status:
        """Enter a call that has ended; its status, now with what it cost in the trailers.

        began:     when it was complete, on time.monotonic's clock
        served_by: the answer's ModelVersion; None where there is none
        """
        seconds = time.monotonic() - began
        model, version = (served_by.model, served_by.version) if served_by is not None else ("", 0)
        counter = self._answered.get((model, status.code))
        if counter is None:
            counter = self._metrics.requests.labels(self._method, model, status.code.name)
            self._answered[model, status.code] = counter
        counter.inc()
        self._seconds.observe(seconds)
        rows, waited, ran = stats.totals()
        if self._says == "all" or (self._says == "errors" and status.code.value[0]):
            self._say(stats, model, version, status.code.name, seconds)
        if self._tracer is not None:
            self._tracer.tell(self._method, stats, began, seconds, model, version, status.code)
        timing = _DURATIONS % (waited * 1e3, ran * 1e3, seconds * 1e3, rows)
        if model:
            timing += f', model;desc="{model}/{version}"'
        status.trailers += ((REQUEST_ID, stats.request_id), (TIMING, timing))
        return status

    def _say(self, stats: CallStats, model: str, version: int, code: str, seconds: float) -> None:
        rows, waited, ran = stats.totals()
        fields = {
            "request_id": stats.request_id,
            "method": self._method,
            "code": code,
            "model": model,
            "version": version,
            "rows": rows,
            "queue_ms": round(waited * 1e3, 3),
            "run_ms": round(ran * 1e3, 3),
            "total_ms": round(seconds * 1e3, 3),
        }
        of = f" of {model} version {version}" if model else ""
        # As text all of it stands in the sentence; as JSON each is a field as well.
        log.info(
            f"{self._method} {code}: %(rows)d row(s){of}, queue %(queue_ms).3f ms, "
            "run %(run_ms).3f ms, in all %(total_ms).3f ms, request id %(request_id)s.",
            fields,
            extra={"fields": fields},
        )
