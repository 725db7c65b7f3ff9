"""A failed call raises the matching error, or is retried if that is safe."""

from __future__ import annotations

import asyncio
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from latentd.client import AsyncClient, Client, ServiceError
from latentd.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ModelNotFound,
    Overloaded,
    Unavailable,
)
from tests.support.fake_server import CHUNK, DRAINING, FakeServer, ScriptedService, sampled


def test_with_version_sends_the_version_that_served(
    scripted: FakeServer, script: ScriptedService
) -> None:
    with Client(scripted.target, model="toy", background=True, token="s3cret") as client:
        served_by = client.sample(1).served_by
        client.with_version(served_by).sample(1)
        client.sample(1)
    assert [(r.model, r.version) for r in script.requests] == [("toy", 0), ("toy", 3), ("toy", 0)]
    assert script.metadata[0]["latentd-priority"] == "background"
    assert script.metadata[0]["authorization"] == "Bearer s3cret"


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgument("count", "5000 were asked for", "Ask for less"),
        ModelNotFound("Model 'other' is not served; served models: toy."),
    ],
)
def test_service_error_is_raised_unchanged(
    client: Client, script: ScriptedService, error: Exception
) -> None:
    script.faults.append(error)
    with pytest.raises(type(error)) as caught:
        client.sample(1)
    assert str(caught.value) == str(error)
    assert getattr(caught.value, "field", None) == getattr(error, "field", None)
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    assert len(script.requests) == 1  # not retried


def test_other_failure_keeps_its_code(client: Client, script: ScriptedService) -> None:
    script.faults.append(RuntimeError("a secret"))
    with pytest.raises(ServiceError, match=r"INTERNAL: .* request id [0-9a-f]+\.$") as caught:
        client.sample(1)
    assert caught.value.code == "INTERNAL"


def test_late_answer_is_an_error_with_advice(scripted: FakeServer, script: ScriptedService) -> None:
    script.faults.append(lambda context: script.call_ended.wait(60))
    with (
        Client(scripted.target, timeout=0.2) as client,
        pytest.raises(DeadlineExceeded, match="Increase timeout="),
    ):
        client.sample(1)


def test_call_overrides_the_clients_timeout(scripted: FakeServer, script: ScriptedService) -> None:
    remaining: list[float | None] = []
    script.faults.extend([lambda context: remaining.append(context.time_remaining())] * 3)
    with Client(scripted.target, timeout=300) as client:
        client.sample(1)
        client.sample(1, timeout=900)
        client.sample(1, timeout=None)
    assert 200 < (remaining[0] or 0) < 301
    assert 800 < (remaining[1] or 0) < 901
    assert remaining[2] is None or remaining[2] > 1e8  # no deadline


def test_missing_server_is_unavailable() -> None:
    running = FakeServer()
    running.stop()
    with (
        Client(running.target, attempts=1) as client,
        pytest.raises(Unavailable, match=running.target),
    ):
        client.sample(1)


def test_message_over_the_servers_limit_is_not_overloaded(client: Client) -> None:
    with pytest.raises(ServiceError, match="fewer rows") as caught:
        client.score(np.zeros((2, 1 << 20), np.uint8))
    assert caught.value.code == "RESOURCE_EXHAUSTED"


def test_retried_sample_requests_the_same_rows(client: Client, script: ScriptedService) -> None:
    script.faults.extend([DRAINING, DRAINING])
    samples = client.sample(2)
    np.testing.assert_array_equal(samples.x, sampled(samples.seed, 0, 2))
    assert [request.seed for request in script.requests] == [samples.seed] * 3
    assert client.sample(2).seed != samples.seed


def test_call_that_grpc_rejects_as_cancelled_is_retried(
    client: Client, script: ScriptedService
) -> None:
    # gRPC sometimes rejects calls in this way during a flood.
    script.faults.append(lambda context: context.abort(grpc.StatusCode.CANCELLED, "CANCELLED"))
    assert len(client.sample(2)) == 2
    assert len(script.requests) == 2


def test_attempts_1_never_retries(scripted: FakeServer, script: ScriptedService) -> None:
    script.faults.extend([DRAINING, (1, DRAINING)])
    with Client(scripted.target, attempts=1) as client:
        with pytest.raises(Unavailable):
            client.sample(1)
        with pytest.raises(Unavailable):
            list(client.stream_samples(3 * CHUNK))
    assert len(script.requests) == 2


def test_overloaded_server_sets_the_delay(
    scripted: FakeServer, client: Client, script: ScriptedService
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


def test_consecutive_rejections_stop_the_retries(
    scripted: FakeServer, script: ScriptedService
) -> None:
    script.faults.extend([Overloaded("full", "The queue is full", 0.001)] * 150)

    async def flood() -> None:
        async with AsyncClient(scripted.target) as client:
            calls = [client.sample(1) for _ in range(100)]
            assert Overloaded in map(type, await asyncio.gather(*calls, return_exceptions=True))
            await client.sample(1)  # one that is answered

    asyncio.run(flood())
    assert len(script.requests) == 200  # 99 of the 100 that failed were tried again, and no more


def test_not_serving_server_is_skipped(scripted: FakeServer) -> None:
    scripted.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    with Client(scripted.target, attempts=1) as client, pytest.raises(Unavailable):
        client.sample(1)
    with Client(scripted.target, healthy_only=False) as client:
        assert client.health() == "NOT_SERVING"
    assert scripted.script.requests == []


def test_async_client_retries_resumes_and_raises(
    scripted: FakeServer, script: ScriptedService
) -> None:
    async def calls() -> None:
        async with AsyncClient(scripted.target) as client:
            script.faults.append(DRAINING)
            assert len(await client.sample(2)) == 2
            script.faults.append((1, DRAINING))
            chunks = [chunk.x async for chunk in client.stream_samples(3 * CHUNK, seed=8)]
            np.testing.assert_array_equal(np.concatenate(chunks), sampled(8, 0, 3 * CHUNK))
            script.faults.append(InvalidArgument("count", "too many"))
            with pytest.raises(InvalidArgument, match=r"^count: too many\.$"):
                await client.sample(2)

    asyncio.run(calls())
    assert len(script.requests) == 5
