"""Admission control: calls rejected before they are read are those no batcher would admit."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentd.errors import Overloaded
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from latentd.transport.admission import AdmissionController
from latentd.transport.handlers import Handler
from latentd.transport.status import Status, status

DECODER = "decoder"


class Overload:
    """An AdmissionController over decoder batchers with the given waits, one model each."""

    def __init__(self, *waits: float) -> None:
        self.now = 100.0
        self.batchers = [
            SimpleNamespace(name=DECODER, min_wait=wait, last_batch_end=self.now) for wait in waits
        ]
        models = [
            SimpleNamespace(batchers=lambda one=batcher: [(one, None)]) for batcher in self.batchers
        ]
        self.admission = AdmissionController(
            SimpleNamespace(models=lambda: models), lambda: self.now
        )

    def rejects(self, seconds_left: float, *graphs: str) -> bool:
        return self.admission.excess_wait(graphs or (DECODER,), self.now + seconds_left) is not None


def test_call_is_rejected_when_the_wait_exceeds_its_deadline():
    overload = Overload(0.1)
    assert overload.rejects(0.1)
    assert not overload.rejects(0.2)


def test_least_busy_batcher_in_use_decides():
    overload = Overload(0.1, 0.01)
    assert not overload.rejects(0.05)
    overload.batchers[1].last_batch_end -= 60  # not in use lately
    assert overload.rejects(0.05)


def test_busy_batcher_rejects_no_call_for_another_graph():
    overload = Overload(0.1)
    assert overload.rejects(0.05)
    assert not overload.rejects(0.05, "encoder")


def test_call_that_may_enter_any_graph_is_rejected_when_the_least_busy_one_is_too_busy():
    overload = Overload(0.1, 0.01)
    overload.batchers[1].name = "encoder"
    assert not overload.rejects(0.05, "encoder", DECODER)
    overload.batchers[1].min_wait = 0.1
    assert overload.rejects(0.05, "encoder", DECODER)


def test_one_call_in_sixteen_is_read_nevertheless():
    overload = Overload(0.1)
    assert [overload.rejects(0.05) for _ in range(32)].count(False) == 2


def test_idle_batcher_admits_every_call_whatever_was_learned():
    overload = Overload(0.1)
    for _ in range(1000):
        overload.admission.on_rejected((DECODER,), overload.now)
    overload.batchers[0].min_wait = 0.0
    assert not overload.rejects(0.0001)


def test_lead_grows_with_rejected_calls_and_shrinks_with_admitted_ones():
    overload = Overload(0.1)
    assert not overload.rejects(0.15)
    for _ in range(100):
        overload.admission.on_rejected((DECODER,), overload.now)
    assert overload.rejects(0.15)
    for _ in range(1000):
        overload.admission.on_admitted()
    assert not overload.rejects(0.15)


def test_lead_stays_when_only_a_large_request_is_rejected():
    overload = Overload(0.1)
    for _ in range(100):
        # A small one would have been admitted.
        overload.admission.on_rejected((DECODER,), overload.now + 10)
    assert overload.admission.lead_seconds == 0


@pytest.fixture
def rejecting(server):
    """A server that rejects Sample before it reads the call."""
    before = server.server.listener.handlers
    rejected = status(Overloaded("admission", "Too much to do", 0.25), "Sample", "")

    async def never(stream) -> Status:
        raise AssertionError("the call was read")

    path = "/vae.v1.VaeService/Sample"
    handlers = {**before, path: Handler(never, lambda context: rejected)}
    server.server.listener.handlers = handlers
    yield server
    server.server.listener.handlers = before


def test_call_is_rejected_with_retry_info_before_its_message_is_sent(rejecting):
    with grpc.insecure_channel(rejecting.target) as channel:
        call = channel.stream_unary("/vae.v1.VaeService/Sample")
        sent: Future[None] = Future()
        silent = iter(sent.result, None)  # a client that does not send its message
        try:
            with pytest.raises(grpc.RpcError) as refused:
                call(silent, timeout=120)
        finally:
            sent.set_result(None)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        trailers = dict(refused.value.trailing_metadata())
        rich = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        info = error_details_pb2.RetryInfo()
        assert rich.details[0].Unpack(info)
        assert info.retry_delay.ToMilliseconds() == 250
        assert trailers["grpc-retry-pushback-ms"] == "250"

        health = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=120)
        assert answer.status == answer.SERVING


@pytest.mark.parametrize(
    ("method", "graph"),
    [("Sample", "decoder"), ("Encode", "encoder"), ("Reconstruct", "encoder")],
)
def test_rejected_call_is_counted_and_gets_retry_info(server, monkeypatch, method, graph):
    def excess_wait(self, first_graphs: tuple[str, ...], deadline: float) -> float | None:
        return 0.25 if first_graphs == (graph,) else None

    monkeypatch.setattr(AdmissionController, "excess_wait", excess_wait)
    shed = {"graph": graph, "reason": "admission"}
    before = server.metric("latentd_shed_total", **shed)
    with grpc.insecure_channel(server.target) as channel:
        call, request = getattr(VaeServiceStub(channel), method), getattr(pb, f"{method}Request")
        with pytest.raises(grpc.RpcError) as refused:
            call(request(), timeout=120)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        trailers = dict(refused.value.trailing_metadata())
        assert trailers["grpc-retry-pushback-ms"] == "250"
        assert "grpc-status-details-bin" in trailers
        assert server.metric("latentd_shed_total", **shed) == before + 1
