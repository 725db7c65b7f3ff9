"""Calls whose callers are late or gone, over the wire: never run, and nobody else is the worse."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import grpc
import numpy as np
import pytest

from latentd import codec
from latentd.batching.rowqueue import BatchItem
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from latentd.runtime.provider import CUDA

ROWS = 4  # of a call, and of a full batch
SECONDS = 30  # until what should happen counts as missing
PATIENCE = 5000  # calls that a server may need to hear of what has happened


@pytest.fixture(autouse=True)
def _one_thread(provider):
    if provider == CUDA:
        pytest.skip("what is counted here is of lanes with one thread; on a GPU they have two")


class Gate:
    """In front of a lane's graph: each run waits until it is let through. Counts their rows."""

    def __init__(self, graph) -> None:
        self._run, self._runner = graph._runner._run, graph._runner
        self._came, self._passes = threading.Semaphore(0), threading.Semaphore(0)
        self.rows = 0
        self._runner._run = self._wait
        # A run that takes so long is none for the thread that receives calls.
        graph._queue.batch_seconds = 0.02

    def _wait(self, batch: Sequence[BatchItem]):
        self._came.release()
        assert self._passes.acquire(timeout=SECONDS)
        self.rows += sum(share.rows for share in batch)
        return self._run(batch)

    def wait_for_a_run(self) -> None:
        assert self._came.acquire(timeout=SECONDS)

    def let_through(self, runs: int = 1000) -> None:
        self._passes.release(runs)

    def remove(self) -> None:
        self.let_through()
        self._runner._run = self._run


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
    for _ in range(PATIENCE):
        if server.metric(name, **labels) >= number:
            return
        stub.GetModel(pb.GetModelRequest())  # time passes
    pytest.fail(f"{name} is {server.metric(name, **labels)}")


def wait_for_rows(server, stub: VaeServiceStub, rows: int) -> None:
    wait_for(server, stub, "latentd_queue_rows", rows, model="toy", version="1")


def are_as_alone(stub: VaeServiceStub, requests, answers) -> bool:
    alone = [stub.Encode(request) for request in requests]
    return [a.SerializeToString() for a in answers] == [a.SerializeToString() for a in alone]


def test_late_and_cancelled_calls_never_reach_the_engine(server, stub, gate):
    running = stub.Encode.future(encode(0))
    gate.wait_for_a_run()
    late = [stub.Encode.future(encode(n), timeout=4) for n in range(1, 6)]
    gone = [stub.Encode.future(encode(n)) for n in range(6, 11)]
    patient = [stub.Encode.future(encode(n)) for n in range(11, 14)]
    wait_for_rows(server, stub, 13 * ROWS)
    for call in gone:
        call.cancel()
    for call in late:
        with pytest.raises(grpc.RpcError) as refusal:
            call.result(SECONDS)
        assert refusal.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_for(server, stub, "latentd_dropped_total", 10, reason="cancelled")
    gate.let_through()
    answers = [call.result(SECONDS) for call in (running, *patient)]
    assert gate.rows == 4 * ROWS
    assert server.metric("latentd_batch_rows_sum", graph="encoder") == 4 * ROWS
    queue = {"graph": "encoder", "model": "toy", "version": "1"}
    assert server.metric("latentd_queue_rows", **queue) == 0
    assert are_as_alone(stub, [encode(n) for n in (0, 11, 12, 13)], answers)


def test_a_call_cancelled_inside_a_batch_leaves_its_mates_as_they_were(server, stub, gate):
    first = stub.Encode.future(encode(0))
    gate.wait_for_a_run()
    calls = [stub.Encode.future(encode(n, rows=1)) for n in range(1, 5)]
    wait_for_rows(server, stub, ROWS)
    gate.let_through(1)
    first.result(SECONDS)
    gate.wait_for_a_run()  # all four are inside
    calls[1].cancel()
    wait_for(server, stub, "latentd_dropped_total", 1, reason="cancelled")
    gate.let_through()
    answers = [calls[n].result(SECONDS) for n in (0, 2, 3)]
    assert gate.rows == 2 * ROWS
    assert are_as_alone(stub, [encode(n, rows=1) for n in (1, 3, 4)], answers)
