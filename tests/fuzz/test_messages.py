"""Arbitrary and mutated bytes for every method, through the real handlers, service and engine.

A few hundred inputs for each method by default. `make fuzz FUZZ_SECONDS=300` continues for that
time with new ones, and prints their number. A server that dies fails its test.
"""

from __future__ import annotations

import random
import threading

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from latentd.calls import coroutines
from latentd.calls.context import CallContext
from latentd.calls.coroutines import Future
from latentd.transport import handlers
from latentd.transport.handlers import OPEN_INFERENCE, VAE
from tests.support.fuzz_infer import open_inference_requests
from tests.support.fuzz_inputs import mutant, mutated, requests
from tests.support.fuzz_loop import TRIED, once, run_repeatedly

MUTANTS = 20  # of each input, with FUZZ_SECONDS
SECONDS = 120  # timeout of a call
MAX_CHUNKS = 3  # of a stream, then its client cancels

REJECTIONS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,  # it starts like a compressed message
    grpc.StatusCode.CANCELLED,  # by the test, after MAX_CHUNKS
    grpc.StatusCode.DEADLINE_EXCEEDED,  # of ModelInfer's parameter timeout
}

METHODS = {m.name: m for service in (VAE, OPEN_INFERENCE) for m in service.methods}


class Call:
    """One call as a handler sees it; its client sends `data` and cancels a long stream early."""

    def __init__(self, data: bytes) -> None:
        self.context = CallContext()
        self._data: bytes | None = data
        self.written: list[bytes] = []

    def read(self, small: bool = False) -> Future[bytes | None]:
        future: Future[bytes | None] = Future()
        future.set_result(self._data)
        self._data = None  # the client has sent its last
        return future

    def write(self, message: bytes) -> Future[None]:
        self.written.append(message)
        if len(self.written) == MAX_CHUNKS:
            self.context.cancel()
        future: Future[None] = Future()
        future.set_result(None)
        return future


def make_call(handler: handlers.Handler, data: bytes) -> tuple[handlers.Status, Call]:
    """Make a call and wait until it has ended."""
    call, ended, statuses = Call(data), threading.Event(), []

    async def run() -> None:
        statuses.append(await handlers.finish(handler, call))
        ended.set()

    coroutines.run_coroutine(run())
    assert ended.wait(SECONDS), data
    return statuses[0], call


def check(name: str, handler: handlers.Handler, data: bytes) -> None:
    """Assert that the call succeeds, or fails with an error of the client and a short message."""
    status, call = make_call(handler, data)
    if status.code is grpc.StatusCode.OK:
        answer = GetMessageClass(METHODS[name].output_type)
        for message in call.written if status.message is None else [status.message]:
            answer.FromString(message)
    else:
        assert status.code in REJECTIONS, status
        assert len(status.details) <= 1000
        assert "Traceback" not in status.details


@pytest.mark.parametrize("name", METHODS)
def test_any_request_succeeds_or_is_rejected(running, request, name):
    service = METHODS[name].containing_service
    handler = running.server.listener.handlers[f"/{service.full_name}/{name}"]
    valid = (requests if service is VAE else open_inference_requests)(
        GetMessageClass(METHODS[name].input_type)
    )

    inputs: list[bytes] = []

    @once
    @given(st.one_of(st.binary(max_size=200), valid, valid.flatmap(mutated)))
    def property_(data: bytes) -> None:
        inputs.append(data)
        check(name, handler, data)

    def mutants(chance: random.Random) -> None:
        for data in inputs:
            for _ in range(MUTANTS):
                TRIED["inputs"] += 1
                check(name, handler, mutant(data, chance))
        inputs.clear()

    run_repeatedly(property_, request, mutants)
    status, _ = make_call(
        running.server.listener.handlers[f"/{handlers.SERVICE}/Sample"], b"\x18\x01"
    )
    assert status.code is grpc.StatusCode.OK
    for graph in ("encoder", "decoder"):
        assert running.metric("latentd_failed_batches_total", graph=graph) == 0
        labels = {"graph": graph, "model": "toy", "version": "1"}
        assert running.metric("latentd_queue_rows", **labels) == 0
