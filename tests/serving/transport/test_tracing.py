"""Spans of calls: a real server sends them to a real collector over OTLP."""

from __future__ import annotations

import asyncio
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from latentd import codec
from latentd.client import AsyncClient, Client
from latentd.errors import ConfigError
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from latentd.transport import tracing
from latentd.transport.listener_core import CoreListener

otlp = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
otlp_grpc = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc")

TracerProvider = pytest.importorskip("opentelemetry.sdk.trace").TracerProvider

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01"


class Collector(otlp_grpc.TraceServiceServicer):
    """A collector that keeps the spans it gets."""

    def __init__(self) -> None:
        self.requests: queue.SimpleQueue = queue.SimpleQueue()
        self._server = grpc.server(ThreadPoolExecutor(2))
        otlp_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def Export(self, request, context):  # noqa: N802
        self.requests.put(request)
        return otlp.ExportTraceServiceResponse()

    def spans(self) -> list:
        """All spans received so far. A server that has stopped has sent all of its spans."""
        found = []
        while not self.requests.empty():
            for resource in self.requests.get().resource_spans:
                names = {a.key: a.value.string_value for a in resource.resource.attributes}
                assert names["service.name"] == "latentd"
                found += [span for scope in resource.scope_spans for span in scope.spans]
        return found

    def stop(self) -> None:
        self._server.stop(0).wait()


@pytest.fixture
def collector(monkeypatch) -> Iterator[Collector]:
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
    yield collector
    collector.stop()


@pytest.fixture(params=["core", "aio"])
def spans_of(request, collector, start_server, toy_bundles):
    """Call a traced server with these headers, stop it, and return the collector's spans."""
    server = start_server(toy_bundles, listener=request.param)

    def spans_of(call, *metadata) -> list:
        with grpc.insecure_channel(server.target) as channel:
            call(VaeServiceStub(channel), metadata)
        server.stop()
        return collector.spans()

    return spans_of


def attributes(span) -> dict[str, object]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def test_span_of_a_call_is_between_the_clients_span_and_its_parts(spans_of):
    x = codec.to_rows(np.zeros((3, 4, 4), np.uint8))
    spans = spans_of(
        lambda stub, metadata: stub.Reconstruct(pb.ReconstructRequest(x=x), metadata=metadata),
        ("traceparent", SAMPLED),
        ("tracestate", "vendor=1"),
        ("x-request-id", "mine"),
    )
    call = next(span for span in spans if span.name == "vae.v1.VaeService/Reconstruct")
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, PARENT)
    assert call.trace_state == "vendor=1"
    assert call.kind == call.SPAN_KIND_SERVER
    assert (
        attributes(call).items()
        >= {
            "rpc.system": "grpc",
            "rpc.service": "vae.v1.VaeService",
            "rpc.method": "Reconstruct",
            "rpc.grpc.status_code": 0,
            "latentd.request_id": "mine",
            "latentd.model": "toy",
            "latentd.version": 1,
            "latentd.rows": 3,
        }.items()
    )
    parts = sorted(
        (span for span in spans if span is not call), key=lambda span: span.start_time_unix_nano
    )
    assert all(part.trace_id == call.trace_id for part in parts)
    assert all(part.parent_span_id == call.span_id for part in parts)
    assert [(part.name, attributes(part).get("latentd.graph")) for part in parts] == [
        ("read", None),
        *((part, graph) for graph in ("encoder", "decoder") for part in ("queue", "run")),
        ("write", None),
    ]
    assert all(attributes(part)["latentd.rows"] == 3 for part in parts[1:-1])
    # One after the other, from the call's start to its end.
    assert parts[0].start_time_unix_nano == call.start_time_unix_nano
    assert parts[-1].end_time_unix_nano == call.end_time_unix_nano
    for part in parts:
        assert part.start_time_unix_nano <= part.end_time_unix_nano


def test_call_starts_a_trace_when_the_client_sends_none(spans_of):
    spans = spans_of(
        lambda stub, metadata: stub.Sample(pb.SampleRequest(count=1), metadata=metadata)
    )
    (call,) = [span for span in spans if not span.parent_span_id]
    assert call.name == "vae.v1.VaeService/Sample"
    assert {span.trace_id for span in spans} == {call.trace_id}


def test_call_is_not_traced_when_the_client_does_not_sample_it(spans_of):
    unsampled = SAMPLED[:-1] + "0"
    spans = spans_of(
        lambda stub, metadata: stub.Sample(pb.SampleRequest(count=1), metadata=metadata),
        ("traceparent", unsampled),
    )
    assert spans == []


def test_invalid_request_is_not_an_error_of_the_server(spans_of):
    def call(stub, metadata):
        with pytest.raises(grpc.RpcError):
            stub.Sample(pb.SampleRequest(count=0), metadata=metadata)

    (span,) = spans_of(call, ("traceparent", SAMPLED))
    assert attributes(span)["rpc.grpc.status_code"] == 3
    assert span.status.code == span.status.STATUS_CODE_UNSET


def test_calls_of_the_client_are_children_of_the_current_span(collector, start_server, toy_bundles):
    server = start_server(toy_bundles)
    tracer = TracerProvider().get_tracer("test")

    async def call() -> None:
        async with AsyncClient(server.target) as client:
            with tracer.start_as_current_span("awaited") as span:
                parents["Encode"] = span
                await client.encode(np.zeros((1, 4, 4), np.uint8))

    parents = {}
    with Client(server.target) as client:
        with tracer.start_as_current_span("blocking") as span:
            parents["Sample"] = parents["StreamSamples"] = span
            client.sample(1)
            list(client.stream_samples(2))
        client.decode(np.zeros((1, 16), np.float32))  # no span is current
    asyncio.run(call())
    server.stop()
    found = {s.name.rpartition("/")[2]: s.parent_span_id.hex() for s in collector.spans()}
    for method, span in parents.items():
        assert found[method] == f"{span.get_span_context().span_id:016x}", method
    assert found["Decode"] == ""


def test_call_is_traced_when_it_ends_during_a_drain(
    collector, start_server, toy_bundles, monkeypatch
):
    draining, finish, stop = threading.Event(), threading.Event(), CoreListener.stop

    async def stop_noticed(listener, grace) -> None:
        draining.set()
        await stop(listener, grace)

    monkeypatch.setattr(CoreListener, "stop", stop_noticed)
    server = start_server(toy_bundles, listener="core")
    draining.clear()  # the self-test sets it too
    stopping = threading.Thread(target=server.stop)

    def requests():
        yield pb.StreamReconstructRequest(x=codec.to_rows(np.zeros((1, 4, 4), np.uint8)))
        assert finish.wait(60)

    with grpc.insecure_channel(server.target) as channel:
        answers = VaeServiceStub(channel).StreamReconstruct(requests())
        next(answers)
        stopping.start()
        assert draining.wait(60)
        finish.set()
        assert list(answers) == []
        stopping.join()
    assert "StreamReconstruct" in {s.name.rpartition("/")[2] for s in collector.spans()}


def test_calls_succeed_when_the_collector_is_down(start_server, toy_bundles, monkeypatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    server = start_server(toy_bundles)
    with grpc.insecure_channel(server.target) as channel:
        assert VaeServiceStub(channel).Sample(pb.SampleRequest(count=1)).x


def test_opentelemetry_is_not_imported_when_tracing_is_off():
    code = (
        "import json, sys\nimport latentd.process.server\nfrom latentd.transport import tracing\n"
        "assert tracing.create_tracer('auto', {}) is None\n"
        "endpoint = {'OTEL_EXPORTER_OTLP_ENDPOINT': 'http://a:1'}\n"
        "assert tracing.create_tracer('off', endpoint) is None\n"
        "print(json.dumps([m for m in sys.modules if m.startswith('opentelemetry')]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == []


def test_missing_extra_is_named_with_the_package_to_install(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"--tracing on is not available: .*latentd\[tracing\]"):
        tracing.create_tracer("on", {})
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}
    assert tracing.create_tracer("auto", variables) is None
    assert "Tracing disabled: OpenTelemetry is not installed" in caplog.text
