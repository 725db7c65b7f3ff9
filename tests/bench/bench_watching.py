"""What it costs a call to be watched: its account and trailers, a log line, its spans.

Times what happens at a call's end and beginning, without network and engine, and takes the fastest
of many turns: differences of microseconds are lost in what a whole call takes from turn to turn.
Spans are made and dropped, not sent: sending is another thread's work. Usage:
python tests/bench/bench_watching.py
"""

from __future__ import annotations

import logging
import os
import time
import timeit
from collections.abc import Callable

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry

from latentd import logs
from latentd.metrics import Metrics
from latentd.pb import vae_pb2 as pb
from latentd.transport import call_recorder, handlers, tracing
from latentd.transport.call_recorder import CallRecorder
from latentd.transport.status import Status

CALLS, TURNS = 500, 400
METADATA = (("user-agent", "grpc-python/1.85"), ("te", "trailers"))
SERVED_BY = pb.ModelVersion(model="digits", version=3)


class Nowhere(SpanExporter):
    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None: ...


def spent(work: Callable[[], object]) -> float:
    """Microseconds, at the best."""
    return min(timeit.repeat(work, number=CALLS, repeat=TURNS)) / CALLS * 1e6


def tracer(sampler: str) -> tracing.Tracer:
    os.environ |= {"OTEL_TRACES_SAMPLER": sampler, "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    return tracing.Tracer(Nowhere())


def call(book: CallRecorder) -> Callable[[], object]:
    """A call's beginning and end, as wire and lane do it for one row of Sample."""

    def once() -> None:
        stats = handlers.call_context(METADATA, 10.0).stats
        book.start(stats)
        now = time.monotonic()
        stats.record("decoder", 1, now, now, now)
        book.finish(stats, now, SERVED_BY, Status(message=b""))

    return once


def bare(metrics: Metrics) -> Callable[[], object]:
    """The same without anything to tell: counted and timed."""
    counter = metrics.requests.labels("Sample", "digits", "OK")
    seconds = metrics.request_seconds.labels("Sample")

    def once() -> None:
        handlers.call_context(METADATA, 10.0)
        now = time.monotonic()
        Status(message=b"")
        counter.inc()
        seconds.observe(time.monotonic() - now)

    return once


def main() -> None:
    metrics = Metrics(CollectorRegistry())
    handler = logging.StreamHandler(open(os.devnull, "w"))  # noqa: SIM115
    handler.setFormatter(logs._Json(None))
    call_recorder.log.addHandler(handler)
    call_recorder.log.setLevel("INFO")
    call_recorder.log.propagate = False

    def book(says: str = "none", traced: tracing.Tracer | None = None) -> CallRecorder:
        return CallRecorder("Sample", metrics, says, traced)

    least = spent(bare(metrics))
    print(f"counted and timed only                 {least:6.1f} us")
    for name, one in {
        "account and trailers (always)": book(),
        "--access-log all, as JSON": book("all"),
        "--tracing on, not sampled": book(traced=tracer("always_off")),
        "--tracing on, sampled": book(traced=tracer("always_on")),
    }.items():
        print(f"{name:38} {spent(call(one)):6.1f} us")


if __name__ == "__main__":
    main()
