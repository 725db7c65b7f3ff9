"""What observability costs a call: its statistics and trailers, a log line, its spans.

Times what happens at the start and the end of a call, without network and engine. Takes the fastest
of many rounds, because a whole call varies by more than these microseconds. Spans are made and
dropped, not sent: another thread sends them. Usage:
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

CALLS, ROUNDS = 500, 400
METADATA = (("user-agent", "grpc-python/1.85"), ("te", "trailers"))
SERVED_BY = pb.ModelVersion(model="digits", version=3)


class Nowhere(SpanExporter):
    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None: ...


def spent(work: Callable[[], object]) -> float:
    """Microseconds a call in the fastest round."""
    return min(timeit.repeat(work, number=CALLS, repeat=ROUNDS)) / CALLS * 1e6


def tracer(sampler: str) -> tracing.Tracer:
    os.environ |= {"OTEL_TRACES_SAMPLER": sampler, "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    return tracing.Tracer(Nowhere())


def call(recorder: CallRecorder) -> Callable[[], object]:
    """Start and end of a call, as the handlers and the batcher record them for a row of Sample."""

    def once() -> None:
        stats = handlers.call_context(METADATA, 10.0).stats
        recorder.start(stats)
        now = time.monotonic()
        stats.record("decoder", 1, now, now, now)
        recorder.finish(stats, now, SERVED_BY, Status(message=b""))

    return once


def bare(metrics: Metrics) -> Callable[[], object]:
    """The same with a counter and a timer only."""
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

    def recorder(access_log: str = "none", traced: tracing.Tracer | None = None) -> CallRecorder:
        return CallRecorder("Sample", metrics, access_log, traced)

    baseline = spent(bare(metrics))
    print(f"counted and timed only                 {baseline:6.1f} us")
    for name, one in {
        "statistics and trailers (always)": recorder(),
        "--access-log all, as JSON": recorder("all"),
        "--tracing on, not sampled": recorder(traced=tracer("always_off")),
        "--tracing on, sampled": recorder(traced=tracer("always_on")),
    }.items():
        print(f"{name:38} {spent(call(one)):6.1f} us")


if __name__ == "__main__":
    main()
