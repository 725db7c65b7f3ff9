"""Refusal before a call is read: only of what no lane would admit, and never for long."""

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


class House:
    """A door before decoder lanes that are as busy as a test wants them, each of a model of its
    own."""

    def __init__(self, *waits: float) -> None:
        self.now = 100.0
        self.batchers = [
            SimpleNamespace(name=DECODER, min_wait=wait, last_batch_end=self.now) for wait in waits
        ]
        models = [
            SimpleNamespace(batchers=lambda one=batcher: [(one, None)]) for batcher in self.batchers
        ]
        self.door = AdmissionController(SimpleNamespace(models=lambda: models), lambda: self.now)

    def refuses(self, seconds_left: float, batcher: str = DECODER) -> bool:
        return self.door.wait(batcher, self.now + seconds_left) is not None


def test_who_has_less_time_than_the_lane_needs_is_refused():
    house = House(0.1)
    assert house.refuses(0.1)
    assert not house.refuses(0.2)


def test_the_shortest_lane_in_use_decides():
    house = House(0.1, 0.01)
    assert not house.refuses(0.05)
    house.batchers[1].last_batch_end -= 60  # nobody has asked for that one of late
    assert house.refuses(0.05)


def test_a_busy_lane_refuses_no_call_that_enters_another_first():
    house = House(0.1)
    assert house.refuses(0.05)
    assert not house.refuses(0.05, "encoder")


def test_some_are_read_all_the_same_for_they_may_want_a_lane_that_is_free():
    house = House(0.1)
    assert [house.refuses(0.05) for _ in range(32)].count(False) == 2


def test_an_empty_lane_lets_everybody_in_whatever_was_learned():
    house = House(0.1)
    for _ in range(1000):
        house.door.on_rejected(DECODER, house.now)
    house.batchers[0].min_wait = 0.0
    assert not house.refuses(0.0001)


def test_calls_read_in_vain_make_the_door_stricter_and_calls_admitted_milder():
    house = House(0.1)
    assert not house.refuses(0.15)
    for _ in range(100):
        house.door.on_rejected(DECODER, house.now)
    assert house.refuses(0.15)
    for _ in range(1000):
        house.door.on_admitted()
    assert not house.refuses(0.15)


def test_a_large_request_that_a_lane_refuses_teaches_the_door_nothing():
    house = House(0.1)
    for _ in range(100):
        house.door.on_rejected(DECODER, house.now + 10)  # a small one would have been admitted
    assert house.door.lead == 0


@pytest.fixture
def refusing(server):
    """The server, its Sample refusing at the door."""
    before = server.server._listener.handlers
    refusal = status(Overloaded("admission", "Too much to do", 0.25), "Sample", "")

    async def never(stream) -> Status:
        raise AssertionError("the call was read")

    path = "/vae.v1.VaeService/Sample"
    handlers = {**before, path: Handler(never, lambda caller: refusal)}
    server.server._listener.handlers = handlers
    yield server
    server.server._listener.handlers = before


def test_a_call_is_refused_without_its_message_and_told_when_to_come_back(refusing):
    with grpc.insecure_channel(refusing.target) as channel:
        call = channel.stream_unary("/vae.v1.VaeService/Sample")
        held: Future[None] = Future()
        silent = iter(held.result, None)  # a caller that does not send its message
        try:
            with pytest.raises(grpc.RpcError) as refused:
                call(silent, timeout=20)
        finally:
            held.set_result(None)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        trailers = dict(refused.value.trailing_metadata())
        rich = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        info = error_details_pb2.RetryInfo()
        assert rich.details[0].Unpack(info)
        assert info.retry_delay.ToMilliseconds() == 250
        assert trailers["grpc-retry-pushback-ms"] == "250"

        health = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert answer.status == answer.SERVING


@pytest.mark.parametrize(
    ("method", "batcher"),
    [("Sample", "decoder"), ("Encode", "encoder"), ("Reconstruct", "encoder")],
)
def test_what_the_door_refuses_is_counted_and_told_when_to_come_back(
    server, monkeypatch, method, batcher
):
    def wait(self, entered: str, deadline: float) -> float | None:
        return 0.25 if entered == batcher else None

    monkeypatch.setattr(AdmissionController, "wait", wait)
    shed = {"graph": batcher, "reason": "admission"}
    before = server.metric("latentd_shed_total", **shed)
    with grpc.insecure_channel(server.target) as channel:
        call, request = getattr(VaeServiceStub(channel), method), getattr(pb, f"{method}Request")
        with pytest.raises(grpc.RpcError) as refused:
            call(request(), timeout=20)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        trailers = dict(refused.value.trailing_metadata())
        assert trailers["grpc-retry-pushback-ms"] == "250"
        assert "grpc-status-details-bin" in trailers
        assert server.metric("latentd_shed_total", **shed) == before + 1
