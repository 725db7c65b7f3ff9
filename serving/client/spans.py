"""The caller's current OpenTelemetry span, for the server to put its own below."""

from __future__ import annotations

import sys


def current() -> tuple[tuple[str, str], ...]:
    """Metadata with W3C's trace context; empty where there is no span."""
    if "opentelemetry.trace" not in sys.modules:
        return ()  # who has a span has imported it
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return tuple(headers.items())
