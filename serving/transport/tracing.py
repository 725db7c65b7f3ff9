"""OpenTelemetry spans of calls: an extra (latentd[tracing]) that nothing imports until it is on.

A call is traced when it has ended, from what its account says: while it runs, tracing costs
nothing but the call's list of spans.

    vae.v1.VaeService/Sample      the call, below the caller's own span (W3C traceparent)
      read                        parsing the message and its rows
      queue, run                  of each pass through a lane
      write                       the answer's rows to its message
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import grpc

from latentd.calls.stats import MAX_SPANS, CallStats
from latentd.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

log = logging.getLogger(__name__)

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_OURS: Final = ("DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE")
"""Statuses that OpenTelemetry's conventions count as a server's own errors."""
_NS: Final = 1_000_000_000


def choose(kind: str, environment: Mapping[str, str] = os.environ) -> Tracer | None:
    """The tracer for `kind`, auto | on | off. Raises ConfigError where it is asked for and cannot
    be had; where it is only told of by OpenTelemetry's variables, a warning says so."""
    told = any(environment.get(name) for name in _ENDPOINTS)
    if kind == "off" or (kind == "auto" and not told):
        return None
    try:
        return Tracer()
    except ImportError as error:
        missing = f"OpenTelemetry is not installed ({error.name}): pip install 'latentd[tracing]'"
        if kind == "on":
            raise ConfigError(f"--tracing on cannot be had: {missing}.") from None
        log.warning("No tracing: %s.", missing)
        return None


class Tracer:
    """Sends spans to the collector that OpenTelemetry's own variables name, from a thread of its
    own; a collector that does not answer costs spans and never calls."""

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        """exporter: where spans go instead. Raises ImportError without the extra."""
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        name = {} if "OTEL_SERVICE_NAME" in os.environ else {SERVICE_NAME: "latentd"}
        # Not the process's own provider: whoever embeds a server keeps theirs.
        self._provider = TracerProvider(resource=Resource.create(name), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("latentd")
        self._context = TraceContextTextMapPropagator()
        self._trace = trace

    def close(self) -> None:
        """Send what waits; blocks, as long as the exporter's own timeout at the most."""
        with contextlib.suppress(Exception):  # the collector's trouble
            self._provider.shutdown()

    def tell(
        self,
        method: str,
        stats: CallStats,
        began: float,
        seconds: float,
        model: str,
        version: int,
        code: grpc.StatusCode,
    ) -> None:
        """Make the spans of a call that has ended, `seconds` after it `began` on time.monotonic's
        clock."""
        ended = began + seconds
        epoch = time.time_ns() - time.monotonic_ns()

        def begin(name: str, at: float, parent: Any, kind: Any = None) -> Span:
            kind = kind or self._trace.SpanKind.INTERNAL
            return self._tracer.start_span(name, parent, kind, start_time=epoch + int(at * _NS))

        parent = self._context.extract(stats.context or {})
        call = begin(f"vae.v1.VaeService/{method}", began, parent, self._trace.SpanKind.SERVER)
        if call.is_recording():
            within = self._trace.set_span_in_context(call, parent)

            def part(name: str, start: float, stop: float, **attributes: str | int) -> None:
                span = begin(name, start, within)
                span.set_attributes({f"latentd.{key}": v for key, v in attributes.items()})
                span.end(epoch + int(stop * _NS))

            spans = stats.spans or []
            if spans:
                part("read", began, spans[0].queued_at)
            for one in spans:
                part("queue", one.queued_at, one.started_at, graph=one.graph, rows=one.rows)
                part("run", one.started_at, one.ended_at, graph=one.graph, rows=one.rows)
            if 0 < len(spans) < MAX_SPANS and code is grpc.StatusCode.OK:
                part("write", max(one.ended_at for one in spans), ended)
            call.set_attributes(
                {
                    "rpc.system": "grpc",
                    "rpc.service": "vae.v1.VaeService",
                    "rpc.method": method,
                    "rpc.grpc.status_code": code.value[0],
                    "latentd.request_id": stats.request_id,
                    "latentd.model": model,
                    "latentd.version": version,
                    "latentd.rows": stats.totals()[0],
                }
            )
            if code.name in _OURS:
                call.set_status(self._trace.StatusCode.ERROR)
        call.end(epoch + int(ended * _NS))
