"""A call of the client's that fails: raised as what it is, or repeated when that is safe."""

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
from tests.support.fake_server import CHUNK, DRAINING, Running, Scripted, sampled


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
        InvalidArgument("count", "5000 were asked for", "Ask for less"),
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
        with pytest.raises(DeadlineExceeded, match="Allow more time"):
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
        pytest.raises(Unavailable, match=running.target),
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


def test_a_call_that_grpc_itself_had_no_place_for_is_made_again(
    client: Client, script: Scripted
) -> None:
    # So it refuses, by chance, what comes while others flood the server.
    script.faults.append(lambda context: context.abort(grpc.StatusCode.CANCELLED, "CANCELLED"))
    assert len(client.sample(2)) == 2
    assert len(script.requests) == 2


def test_attempts_1_never_repeats_a_call(scripted: Running, script: Scripted) -> None:
    script.faults.extend([DRAINING, (1, DRAINING)])
    with Client(scripted.target, attempts=1) as client:
        with pytest.raises(Unavailable):
            client.sample(1)
        with pytest.raises(Unavailable):
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
    with Client(scripted.target, attempts=1) as client, pytest.raises(Unavailable):
        client.sample(1)
    with Client(scripted.target, healthy_only=False) as client:
        assert client.health() == "NOT_SERVING"
    assert scripted.script.requests == []


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
            script.faults.append(InvalidArgument("count", "too many"))
            with pytest.raises(InvalidArgument, match=r"^count: too many\.$"):
                await client.sample(2)

    asyncio.run(calls())
    assert len(script.requests) == 5
