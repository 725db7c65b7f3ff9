"""OpenTelemetry spans of calls: an extra (latentd[tracing]), imported only if tracing is on.

The spans of a call are made after it has ended, from its CallStats. While the call runs, tracing
costs only the list of its spans.

    vae.v1.VaeService/Sample      the call; its parent is the client's span (W3C traceparent)
      read                        parsing the message and its rows
      queue, run                  of each batch that ran some of its rows
      write                       serializing the response's rows
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
_SERVER_ERRORS: Final = ("DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE")
"""Statuses that OpenTelemetry's conventions count as errors of the server."""
_NS: Final = 1_000_000_000


def create_tracer(kind: str, environment: Mapping[str, str] = os.environ) -> Tracer | None:
    """The tracer for `kind`, auto | on | off; None: calls are not traced.

    auto traces if OpenTelemetry's variables name a collector; a missing package is logged as a
    warning. With on, a missing package raises ConfigError.
    """
    configured = any(environment.get(name) for name in _ENDPOINTS)
    if kind == "off" or (kind == "auto" and not configured):
        return None
    try:
        return Tracer()
    except ImportError as error:
        missing = f"OpenTelemetry is not installed ({error.name}); pip install 'latentd[tracing]'"
        if kind == "on":
            raise ConfigError(f"--tracing on is not available: {missing}.") from None
        log.warning("Tracing disabled: %s.", missing)
        return None


class Tracer:
    """Sends spans to the collector that OpenTelemetry's variables name, in a separate thread. If
    the collector does not answer, spans are lost; calls are not affected."""

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        """exporter: used in place of OTLP's. Raises ImportError without the extra."""
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        name = {} if "OTEL_SERVICE_NAME" in os.environ else {SERVICE_NAME: "latentd"}
        # Not the process's global provider: a program that embeds a server keeps its own.
        self._provider = TracerProvider(resource=Resource.create(name), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("latentd")
        self._context = TraceContextTextMapPropagator()
        self._trace = trace

    def close(self) -> None:
        """Send the remaining spans; blocks for up to the exporter's timeout."""
        with contextlib.suppress(Exception):  # the collector may be gone
            self._provider.shutdown()

    def export_call(
        self,
        method: str,
        stats: CallStats,
        started_at: float,
        seconds: float,
        model: str,
        version: int,
        code: grpc.StatusCode,
    ) -> None:
        """Export the spans of a call that took `seconds`.

        started_at: on time.monotonic's clock
        """
        ended = started_at + seconds
        epoch = time.time_ns() - time.monotonic_ns()

        def start_span(name: str, at: float, parent: Any, kind: Any = None) -> Span:
            kind = kind or self._trace.SpanKind.INTERNAL
            return self._tracer.start_span(name, parent, kind, start_time=epoch + int(at * _NS))

        parent = self._context.extract(stats.context or {})
        call = start_span(
            f"vae.v1.VaeService/{method}", started_at, parent, self._trace.SpanKind.SERVER
        )
        if call.is_recording():
            within = self._trace.set_span_in_context(call, parent)

            def child(name: str, start: float, stop: float, **attributes: str | int) -> None:
                span = start_span(name, start, within)
                span.set_attributes({f"latentd.{key}": v for key, v in attributes.items()})
                span.end(epoch + int(stop * _NS))

            spans = stats.spans or []
            if spans:
                child("read", started_at, spans[0].queued_at)
            for batch in spans:
                child(
                    "queue", batch.queued_at, batch.started_at, graph=batch.graph, rows=batch.rows
                )
                child("run", batch.started_at, batch.ended_at, graph=batch.graph, rows=batch.rows)
            if 0 < len(spans) < MAX_SPANS and code is grpc.StatusCode.OK:
                child("write", max(batch.ended_at for batch in spans), ended)
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
            if code.name in _SERVER_ERRORS:
                call.set_status(self._trace.StatusCode.ERROR)
        call.end(epoch + int(ended * _NS))
