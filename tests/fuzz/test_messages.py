"""Arbitrary and mutated bytes for every method, through the real handlers, service and engine.

A few hundred inputs each by default; `make fuzz FUZZ_SECONDS=300` goes on for that long with new
ones, and says how many there were. A server that dies fails its test.
"""

from __future__ import annotations

import random
import threading

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentd.calls import coroutines
from latentd.calls.context import CallContext
from latentd.calls.coroutines import Future
from latentd.pb import vae_pb2 as pb
from latentd.transport import handlers
from tests.support.fuzz_inputs import mutant, mutated, requests
from tests.support.fuzz_loop import TRIED, again_and_again, once

MUTANTS = 20  # of each input, where the tests go on for their seconds
PATIENCE = 30  # seconds for an answer
MAX_CHUNKS = 3  # of a stream, before its caller leaves

REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,  # it begins as what is compressed does
    grpc.StatusCode.CANCELLED,  # by ourselves, when a stream has gone on for long enough
}

METHODS = {m.name: m for m in pb.DESCRIPTOR.services_by_name["VaeService"].methods}


class Call:
    """One call as a handler sees it; its caller sends `data` and leaves a long stream early."""

    def __init__(self, data: bytes) -> None:
        self.context = CallContext()
        self._data: bytes | None = data
        self.written: list[bytes] = []

    def read(self) -> Future[bytes | None]:
        reply: Future[bytes | None] = Future()
        reply.set_result(self._data)
        self._data = None  # it was the last
        return reply

    def write(self, message: bytes) -> Future[None]:
        self.written.append(message)
        if len(self.written) == MAX_CHUNKS:
            self.context.cancel()
        reply: Future[None] = Future()
        reply.set_result(None)
        return reply


def ask(handler: handlers.Handler, data: bytes) -> tuple[handlers.Status, Call]:
    """Make a call and wait for its end."""
    call, ended, statuses = Call(data), threading.Event(), []

    async def run() -> None:
        statuses.append(await handlers.finish(handler, call))
        ended.set()

    coroutines.run_coroutine(run())
    assert ended.wait(PATIENCE), data
    return statuses[0], call


def check(name: str, handler: handlers.Handler, data: bytes) -> None:
    """The call ends well, or with a refusal that is the caller's fault and says little."""
    status, call = ask(handler, data)
    if status.code is grpc.StatusCode.OK:
        answer = getattr(pb, METHODS[name].output_type.name)
        for message in call.written if status.message is None else [status.message]:
            answer.FromString(message)
    else:
        assert status.code in REFUSALS, status
        assert len(status.details) <= 1000
        assert "Traceback" not in status.details


@pytest.mark.parametrize("name", METHODS)
def test_any_bytes_and_any_fields_are_answered_or_refused(running, request, name):
    handler = running.server._listener.handlers[f"/{handlers.SERVICE}/{name}"]
    kind = getattr(pb, METHODS[name].input_type.name)

    inputs: list[bytes] = []

    @once
    @given(st.one_of(st.binary(max_size=200), requests(kind), requests(kind).flatmap(mutated)))
    def property_(data: bytes) -> None:
        inputs.append(data)
        check(name, handler, data)

    def mutants(chance: random.Random) -> None:
        for data in inputs:
            for _ in range(MUTANTS):
                TRIED["inputs"] += 1
                check(name, handler, mutant(data, chance))
        inputs.clear()

    again_and_again(property_, request, mutants)
    status, _ = ask(running.server._listener.handlers[f"/{handlers.SERVICE}/Sample"], b"\x18\x01")
    assert status.code is grpc.StatusCode.OK
    for graph in ("encoder", "decoder"):
        assert running.metric("latentd_failed_batches_total", graph=graph) == 0
        labels = {"graph": graph, "model": "toy", "version": "1"}
        assert running.metric("latentd_queue_rows", **labels) == 0
