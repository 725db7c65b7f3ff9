"""Expired and cancelled calls are never run, and other calls do not notice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import grpc
import numpy as np
import pytest

from latentd import codec
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from latentd.runtime.provider import CUDA
from tests.support.gate import Gate

ROWS = 4  # of a call, and of a full batch
SECONDS = 120  # timeout of every wait
MAX_CALLS = 5000  # until the server must have noticed a cancellation


@pytest.fixture(autouse=True)
def _one_thread(provider):
    if provider == CUDA:
        pytest.skip("these counts need batchers with one thread; on a GPU they have two")


@pytest.fixture(params=["core", "aio"])
def server(request, start_server, toy_bundles):
    return start_server(toy_bundles, listener=request.param, max_batch_rows=ROWS)


@pytest.fixture
def gate(server) -> Iterator[Gate]:
    gate = Gate(server.server.repository.models()[0].encoder)
    yield gate
    gate.remove()


@pytest.fixture
def stub(server) -> Iterator[VaeServiceStub]:
    with grpc.insecure_channel(server.target) as channel:
        yield VaeServiceStub(channel)


def encode(number: int, rows: int = ROWS) -> pb.EncodeRequest:
    x = np.random.default_rng(number).integers(0, 256, (rows, 4, 4), np.uint8)
    return pb.EncodeRequest(x=pb.Rows(tensor=codec.to_tensor(x)), draw=True, seed=number)


def wait_for(server, stub: VaeServiceStub, name: str, number: float, **labels: str) -> None:
    labels["graph"] = "encoder"
    for _ in range(MAX_CALLS):
        if server.metric(name, **labels) >= number:
            return
        stub.GetModel(pb.GetModelRequest())  # takes time
    pytest.fail(f"{name} is {server.metric(name, **labels)}")


def wait_for_rows(server, stub: VaeServiceStub, rows: int) -> None:
    wait_for(server, stub, "latentd_queue_rows", rows, model="toy", version="1")


def queued_rows(server) -> float:
    return server.metric("latentd_queue_rows", graph="encoder", model="toy", version="1")


def expiring(server, stub: VaeServiceStub, numbers: Iterable[int], rows: int) -> list[grpc.Future]:
    """Calls that expire after they have made the queue this long. On a busy machine they get more
    time to get there."""
    for seconds in (1, 4, 16, 64):
        calls = [stub.Encode.future(encode(n), timeout=seconds) for n in numbers]
        while not any(call.done() for call in calls):
            if queued_rows(server) == rows:
                return calls
            stub.GetModel(pb.GetModelRequest())  # takes time
    pytest.fail(f"{queued_rows(server)} rows in the queue")


def match_single_calls(stub: VaeServiceStub, requests, answers) -> bool:
    """Whether the answers are those that the requests get when each is sent alone."""
    alone = [stub.Encode(request) for request in requests]
    return [a.SerializeToString() for a in answers] == [a.SerializeToString() for a in alone]


def test_expired_and_cancelled_calls_are_never_run(server, stub, gate):
    running = stub.Encode.future(encode(0))
    gate.wait_for_batch()
    gone = [stub.Encode.future(encode(n)) for n in range(6, 11)]
    patient = [stub.Encode.future(encode(n)) for n in range(11, 14)]
    wait_for_rows(server, stub, 8 * ROWS)
    late = expiring(server, stub, range(1, 6), 13 * ROWS)
    for call in gone:
        call.cancel()
    for call in late:
        with pytest.raises(grpc.RpcError) as failed:
            call.result(SECONDS)
        assert failed.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    while queued_rows(server) > 3 * ROWS:
        stub.GetModel(pb.GetModelRequest())  # takes time
    assert server.metric("latentd_dropped_total", graph="encoder", reason="cancelled") >= 10
    gate.open()
    answers = [call.result(SECONDS) for call in (running, *patient)]
    assert gate.rows == 4 * ROWS
    assert server.metric("latentd_batch_rows_sum", graph="encoder") == 4 * ROWS
    assert queued_rows(server) == 0
    assert match_single_calls(stub, [encode(n) for n in (0, 11, 12, 13)], answers)


def test_other_calls_of_a_batch_are_unchanged_when_one_is_cancelled(server, stub, gate):
    first = stub.Encode.future(encode(0))
    gate.wait_for_batch()
    calls = [stub.Encode.future(encode(n, rows=1)) for n in range(1, 5)]
    wait_for_rows(server, stub, ROWS)
    gate.open(1)
    first.result(SECONDS)
    gate.wait_for_batch()  # with all four
    calls[1].cancel()
    wait_for(server, stub, "latentd_dropped_total", 1, reason="cancelled")
    gate.open()
    answers = [calls[n].result(SECONDS) for n in (0, 2, 3)]
    assert gate.rows == 2 * ROWS
    assert match_single_calls(stub, [encode(n, rows=1) for n in (1, 3, 4)], answers)
