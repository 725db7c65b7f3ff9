"""A broken stream resumes at the first missing row, or raises."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import grpc
import numpy as np
import pytest

from latentd.client import AsyncClient, Client, ServiceError
from latentd.errors import (
    Overloaded,
    Unavailable,
)
from latentd.pb import vae_pb2 as pb
from tests.support.fake_server import CHUNK, DRAINING, FakeServer, ScriptedService, sampled


def collect(chunks: Iterator[Any]) -> np.ndarray:
    return np.concatenate([chunk.x for chunk in chunks])


def test_broken_stream_resumes_at_the_first_missing_row(
    client: Client, script: ScriptedService
) -> None:
    busy = Overloaded("full", "The queue is full", 0.01)
    script.faults.extend([(2, DRAINING), DRAINING, (1, busy), (1, None)])
    got = collect(client.stream_samples(5 * CHUNK + 1, seed=8, offset=100))
    np.testing.assert_array_equal(got, sampled(8, 100, 100 + 5 * CHUNK + 1))
    requested = [(r.offset, r.count, r.seed, r.model, r.version) for r in script.requests]
    assert requested == [
        (100, 21, 8, "", 0),
        (108, 13, 8, "toy", 3),  # the version of the earlier rows
        (108, 13, 8, "toy", 3),
        (112, 9, 8, "toy", 3),
        (116, 5, 8, "toy", 3),  # the call before ended early and without an error
    ]


def test_resumed_stream_keeps_its_sizes_and_dtype(client: Client, script: ScriptedService) -> None:
    script.faults.extend([(1, DRAINING), (1, None)])
    list(client.stream_samples(3 * CHUNK, sizes={"h": 2, "w": 3}, float_dtype="bfloat16"))
    requested = [(dict(r.sizes), r.float_dtype) for r in script.requests]
    assert requested == [({"h": 2, "w": 3}, pb.DATA_TYPE_BFLOAT16)] * 3


def test_stream_outlives_its_server() -> None:
    first = FakeServer()
    with Client(first.target) as client:
        chunks = client.stream_samples(20_000, seed=8)
        rows = [next(chunks).x]
        first.stop()
        second = FakeServer(int(first.target.rpartition(":")[2]))
        rows += [chunk.x for chunk in chunks]
    np.testing.assert_array_equal(np.concatenate(rows), sampled(8, 0, 20_000))
    assert second.script.requests
    second.stop()


def test_stream_raises_when_a_retry_cannot_help(client: Client, script: ScriptedService) -> None:
    script.faults.extend([DRAINING] * 9)
    with pytest.raises(Unavailable, match="draining"):
        list(client.stream_samples(CHUNK))
    assert len(script.requests) == 4
    script.faults.clear()
    script.faults.append((1, RuntimeError("a secret")))
    with pytest.raises(ServiceError, match="INTERNAL"):
        list(client.stream_samples(2 * CHUNK))
    assert len(script.requests) == 5
    script.faults.append(Overloaded("full", "The queue is full", 9.0))
    with pytest.raises(Overloaded):  # the retry would miss the deadline
        list(client.stream_samples(CHUNK, timeout=5))
    assert len(script.requests) == 6


def test_stream_never_mixes_two_models(client: Client, script: ScriptedService) -> None:
    script.faults.append((1, DRAINING))
    chunks = client.stream_samples(3 * CHUNK)
    next(chunks)
    script.version = 4
    with pytest.raises(ServiceError, match="changed during the stream") as caught:
        list(chunks)
    assert caught.value.code == "ABORTED"


def test_leaving_a_stream_stops_the_server(client: Client, script: ScriptedService) -> None:
    for chunk in client.stream_samples(10**9):
        assert len(chunk) == CHUNK
        break
    assert script.call_ended.wait(60)


def test_leaving_an_async_stream_or_call_stops_the_server(
    scripted: FakeServer, script: ScriptedService
) -> None:
    arrived = threading.Event()

    def hang(context: grpc.ServicerContext) -> None:
        arrived.set()
        script.call_ended.wait(60)

    async def leave() -> None:
        async with AsyncClient(scripted.target) as client:
            async with aclosing(client.stream_samples(10**9)) as chunks:
                async for _ in chunks:
                    break
            assert await asyncio.to_thread(script.call_ended.wait, 60)
            script.call_ended.clear()
            script.faults.append(hang)
            task = asyncio.create_task(client.sample(1))
            assert await asyncio.to_thread(arrived.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(script.call_ended.wait, 60)

    asyncio.run(leave())
