"""The client and a server that fails to order: real gRPC, a real port, the service's statuses."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from serving import codec
from serving.client import AsyncClient, Client, ServiceError
from serving.errors import (
    DeadlineExpired,
    InvalidInput,
    ModelNotFound,
    NotReady,
    Overloaded,
)
from serving.pb import vae_pb2 as pb
from serving.pb import vae_pb2_grpc
from serving.transport import statuses

CHUNK = 4
DRAINING = NotReady("The server is draining.")


def sampled(seed: int, start: int, stop: int) -> np.ndarray:
    """Rows start..stop of a seed, 2 x 3 images: as the service's, a function of seed and row."""
    return (np.arange(start * 6, stop * 6) * 7 + seed % 251).astype(np.uint8).reshape(-1, 2, 3)


class Scripted(vae_pb2_grpc.VaeServiceServicer):
    """Takes one entry of `faults` a call, and answers well once they are used up.

    An exception is raised at once; (n, exception) after n chunks; (n, None) ends the stream there;
    a function is called with the call's context, and then all goes well.
    """

    def __init__(self) -> None:
        self.faults: deque[Any] = deque()
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []
        self.version = 3
        self.left = threading.Event()  # the last call has ended, however

    def Sample(self, request: Any, context: Any) -> Any:  # noqa: N802 (the RPC's own name)
        self._begin(request, context)
        return self._rows(pb.SampleResponse, request, request.offset, request.count)

    def StreamSamples(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        chunks, fault = self._begin(request, context)
        end = request.offset + request.count
        for start in range(request.offset, end, CHUNK):
            if chunks == 0:
                if fault is not None:
                    _abort(context, fault)
                return
            chunks -= 1
            yield self._rows(pb.StreamSamplesResponse, request, start, min(CHUNK, end - start))

    def _begin(self, request: Any, context: Any) -> tuple[int, Exception | None]:
        copy = type(request)()
        copy.CopyFrom(request)
        self.requests.append(copy)
        self.metadata.append(dict(context.invocation_metadata()))
        context.add_callback(self.left.set)
        fault = self.faults.popleft() if self.faults else None
        if isinstance(fault, Exception):
            _abort(context, fault)
        if callable(fault):
            fault(context)
        return fault if isinstance(fault, tuple) else (-1, None)

    def _rows(self, kind: Any, request: Any, start: int, count: int) -> Any:
        return kind(
            served_by=pb.ModelVersion(
                model="toy", version=self.version, digest=f"sha256:{self.version:064x}"
            ),
            x=codec.to_rows(sampled(request.seed, start, start + count)),
            seed=request.seed,
            offset=start,
        )


def _abort(context: Any, error: Exception) -> None:
    ended = statuses.status(error, "Sample", "ab12")
    code, text, trailers = ended.code, ended.text, ended.trailers
    context.set_trailing_metadata(trailers)
    context.abort(code, text)


class Running:
    """A scripted server that is up: `script` says what it does, `health` what it says it is."""

    def __init__(self, port: int = 0) -> None:
        self.script = Scripted()
        self.health = health.HealthServicer(experimental_non_blocking=False)
        options = [("grpc.max_receive_message_length", 1 << 20)]
        self._server = grpc.server(ThreadPoolExecutor(16), options=options)
        vae_pb2_grpc.add_VaeServiceServicer_to_server(self.script, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self.target = f"localhost:{self._server.add_insecure_port(f'localhost:{port}')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def scripted() -> Iterator[Running]:
    running = Running()
    yield running
    running.stop()


@pytest.fixture
def script(scripted: Running) -> Scripted:
    return scripted.script


@pytest.fixture
def client(scripted: Running) -> Iterator[Client]:
    with Client(scripted.target) as client:
        yield client


def collect(chunks: Iterator[Any]) -> np.ndarray:
    return np.concatenate([chunk.x for chunk in chunks])


def test_the_client_names_its_model_and_a_pinned_one_the_version_that_answered(
    scripted: Running, script: Scripted
) -> None:
    with Client(scripted.target, model="toy", background=True, token="s3cret") as client:
        served_by = client.sample(1).served_by
        client.pinned(served_by).sample(1)
        client.sample(1)
    assert [(r.model, r.version) for r in script.requests] == [("toy", 0), ("toy", 3), ("toy", 0)]
    assert script.metadata[0]["latentd-priority"] == "background"
    assert script.metadata[0]["authorization"] == "Bearer s3cret"


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("count", "5000 were asked for", "Ask for less"),
        ModelNotFound("No model 'other' is served here; there is toy."),
    ],
)
def test_an_error_of_the_service_arrives_as_it_left(
    client: Client, script: Scripted, error: Exception
) -> None:
    script.faults.append(error)
    with pytest.raises(type(error)) as caught:
        client.sample(1)
    assert str(caught.value) == str(error)
    assert getattr(caught.value, "field", None) == getattr(error, "field", None)
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    assert len(script.requests) == 1  # such a call is never repeated


def test_any_other_failure_keeps_its_code(client: Client, script: Scripted) -> None:
    script.faults.append(RuntimeError("a secret"))
    with pytest.raises(ServiceError, match=r"INTERNAL: .* request id [0-9a-f]+\.$") as caught:
        client.sample(1)
    assert caught.value.code == "INTERNAL"


def test_the_deadline_is_grpcs_own_and_each_call_may_name_another(
    scripted: Running, script: Scripted
) -> None:
    left: list[float | None] = []
    script.faults.append(lambda context: script.left.wait(30))
    with Client(scripted.target, timeout=0.2) as client:
        with pytest.raises(DeadlineExpired, match="Allow more time"):
            client.sample(1)
        script.faults.extend([lambda context: left.append(context.time_remaining())] * 2)
        client.sample(1, timeout=60)
        client.sample(1, timeout=None)
    assert 50 < (left[0] or 0) < 61
    assert left[1] is None or left[1] > 1e8  # no deadline


def test_a_server_that_is_not_there_is_not_ready() -> None:
    running = Running()
    running.stop()
    with (
        Client(running.target, attempts=1) as client,
        pytest.raises(NotReady, match=running.target),
    ):
        client.sample(1)


def test_a_message_past_the_servers_limit_claims_no_time_to_come_back(client: Client) -> None:
    with pytest.raises(ServiceError, match="fewer rows") as caught:
        client.score(np.zeros((2, 1 << 20), np.uint8))
    assert caught.value.code == "RESOURCE_EXHAUSTED"


def test_a_retried_sample_asks_for_the_same_rows(client: Client, script: Scripted) -> None:
    script.faults.extend([DRAINING, DRAINING])
    samples = client.sample(2)
    np.testing.assert_array_equal(samples.x, sampled(samples.seed, 0, 2))
    assert [request.seed for request in script.requests] == [samples.seed] * 3
    assert client.sample(2).seed != samples.seed


def test_attempts_1_never_repeats_a_call(scripted: Running, script: Scripted) -> None:
    script.faults.extend([DRAINING, (1, DRAINING)])
    with Client(scripted.target, attempts=1) as client:
        with pytest.raises(NotReady):
            client.sample(1)
        with pytest.raises(NotReady):
            list(client.stream_samples(3 * CHUNK))
    assert len(script.requests) == 2


def test_an_overloaded_server_says_when_to_come_back(
    scripted: Running, client: Client, script: Scripted
) -> None:
    script.faults.append(Overloaded("full", "The queue is full", 0.4))
    began = time.monotonic()
    assert len(client.sample(2)) == 2
    assert time.monotonic() - began > 0.35  # the server's word, not the client's own first 0.1 s
    script.faults.append(Overloaded("full", "The queue is full", 0.25))
    with Client(scripted.target, attempts=1) as once, pytest.raises(Overloaded) as caught:
        once.sample(2)
    assert str(caught.value) == "The queue is full. Retry in 0.250 s."
    assert caught.value.retry_after == pytest.approx(0.25)


def test_refusals_in_a_row_end_the_retries_of_a_client(scripted: Running, script: Scripted) -> None:
    script.faults.extend([Overloaded("full", "The queue is full", 0.001)] * 150)

    async def flood() -> None:
        async with AsyncClient(scripted.target) as client:
            calls = [client.sample(1) for _ in range(100)]
            assert Overloaded in map(type, await asyncio.gather(*calls, return_exceptions=True))
            await client.sample(1)  # one that is answered

    asyncio.run(flood())
    assert len(script.requests) == 200  # 99 of the 100 that failed were tried again, and no more


def test_a_server_that_says_it_is_not_serving_is_passed_over(scripted: Running) -> None:
    scripted.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    with Client(scripted.target, attempts=1) as client, pytest.raises(NotReady):
        client.sample(1)
    with Client(scripted.target, healthy_only=False) as client:
        assert client.health() == "NOT_SERVING"
    assert scripted.script.requests == []


def test_a_broken_stream_goes_on_where_it_broke(client: Client, script: Scripted) -> None:
    busy = Overloaded("full", "The queue is full", 0.01)
    script.faults.extend([(2, DRAINING), DRAINING, (1, busy), (1, None)])
    got = collect(client.stream_samples(5 * CHUNK + 1, seed=8, offset=100))
    np.testing.assert_array_equal(got, sampled(8, 100, 100 + 5 * CHUNK + 1))
    asked = [(r.offset, r.count, r.seed, r.model, r.version) for r in script.requests]
    assert asked == [
        (100, 21, 8, "", 0),
        (108, 13, 8, "toy", 3),  # of the version that drew the rows before
        (108, 13, 8, "toy", 3),
        (112, 9, 8, "toy", 3),
        (116, 5, 8, "toy", 3),  # the one before ended early, and without a word
    ]


def test_the_async_client_retries_resumes_and_raises_alike(
    scripted: Running, script: Scripted
) -> None:
    async def calls() -> None:
        async with AsyncClient(scripted.target) as client:
            script.faults.append(DRAINING)
            assert len(await client.sample(2)) == 2
            script.faults.append((1, DRAINING))
            chunks = [chunk.x async for chunk in client.stream_samples(3 * CHUNK, seed=8)]
            np.testing.assert_array_equal(np.concatenate(chunks), sampled(8, 0, 3 * CHUNK))
            script.faults.append(InvalidInput("count", "too many"))
            with pytest.raises(InvalidInput, match=r"^count: too many\.$"):
                await client.sample(2)

    asyncio.run(calls())
    assert len(script.requests) == 5


def test_a_stream_outlives_its_server() -> None:
    first = Running()
    with Client(first.target) as client:
        chunks = client.stream_samples(20_000, seed=8)
        rows = [next(chunks).x]
        first.stop()
        second = Running(int(first.target.rpartition(":")[2]))
        rows += [chunk.x for chunk in chunks]
    np.testing.assert_array_equal(np.concatenate(rows), sampled(8, 0, 20_000))
    assert second.script.requests
    second.stop()


def test_a_stream_gives_up_where_going_on_cannot_help(client: Client, script: Scripted) -> None:
    script.faults.extend([DRAINING] * 9)
    with pytest.raises(NotReady, match="draining"):
        list(client.stream_samples(CHUNK))
    assert len(script.requests) == 4
    script.faults.clear()
    script.faults.append((1, RuntimeError("a secret")))
    with pytest.raises(ServiceError, match="INTERNAL"):
        list(client.stream_samples(2 * CHUNK))
    assert len(script.requests) == 5
    script.faults.append(Overloaded("full", "The queue is full", 9.0))
    with pytest.raises(Overloaded):  # to come back then would be too late
        list(client.stream_samples(CHUNK, timeout=5))
    assert len(script.requests) == 6


def test_a_stream_never_mixes_two_models(client: Client, script: Scripted) -> None:
    script.faults.append((1, DRAINING))
    chunks = client.stream_samples(3 * CHUNK)
    next(chunks)
    script.version = 4
    with pytest.raises(ServiceError, match="changed while it was streaming") as caught:
        list(chunks)
    assert caught.value.code == "ABORTED"


def test_leaving_a_stream_stops_the_server(client: Client, script: Scripted) -> None:
    for chunk in client.stream_samples(10**9):
        assert len(chunk) == CHUNK
        break
    assert script.left.wait(10)


def test_leaving_an_async_stream_or_call_stops_the_server(
    scripted: Running, script: Scripted
) -> None:
    arrived = threading.Event()

    def hang(context: grpc.ServicerContext) -> None:
        arrived.set()
        script.left.wait(30)

    async def leave() -> None:
        async with AsyncClient(scripted.target) as client:
            async with aclosing(client.stream_samples(10**9)) as chunks:
                async for _ in chunks:
                    break
            assert await asyncio.to_thread(script.left.wait, 10)
            script.left.clear()
            script.faults.append(hang)
            task = asyncio.create_task(client.sample(1))
            assert await asyncio.to_thread(arrived.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(script.left.wait, 10)

    asyncio.run(leave())
