"""StreamReconstruct: a response to each message, in order, whatever its rows hold."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator

import grpc
import numpy as np
import pytest

from latentd import codec, images, settings
from latentd.client import AsyncClient, Client
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub


@pytest.fixture(scope="module")
def stub(server) -> Iterator[VaeServiceStub]:
    with grpc.insecure_channel(server.target) as channel:
        yield VaeServiceStub(channel)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 4, 4), np.uint8)


def messages(x: np.ndarray, rows: int, **first: object) -> list[pb.StreamReconstructRequest]:
    """x in messages of this many rows. first: the fields of the first message."""
    return [
        pb.StreamReconstructRequest(
            x=codec.to_rows(x[at : at + rows]), offset=at, **({} if at else first)
        )
        for at in range(0, len(x), rows)
    ]


def test_responses_are_in_order_and_equal_reconstruct(stub, server, x):
    asked = messages(x, 7, include_scores=True, include_latents=True)
    answers = list(stub.StreamReconstruct(iter(asked)))
    assert [answer.offset for answer in answers] == [message.offset for message in asked]
    with Client(server.target) as client:
        wanted, encoding = client.reconstruct(x, include_scores=True), client.encode(x)
    for name, column in (("x", wanted.x), ("mean", encoding.mean), ("log_var", encoding.log_var)):
        parts = [getattr(answer, name) for answer in answers]
        arrays = [codec.from_tensor(part.tensor if name == "x" else part) for part in parts]
        np.testing.assert_array_equal(np.concatenate(arrays), column)
    elbo = [value for answer in answers for value in answer.elbo]
    np.testing.assert_allclose(elbo, wanted.elbo, rtol=1e-6)


def test_client_may_wait_for_each_response_before_it_sends_more(stub, x):
    answered = threading.Semaphore(1)

    def one_by_one() -> Iterator[pb.StreamReconstructRequest]:
        for message in messages(x, 10):
            assert answered.acquire(timeout=60)
            yield message

    offsets = []
    for answer in stub.StreamReconstruct(one_by_one()):
        offsets.append(answer.offset)
        answered.release()
    assert offsets == [0, 10, 20, 30, 40]


def test_noise_depends_on_the_row_and_not_on_the_message(stub, x):
    def elbo(rows: int) -> list[float]:
        asked = messages(x, rows, include_scores=True, draw=True, seed=5, include_x=False)
        answers = list(stub.StreamReconstruct(iter(asked)))
        assert not any(answer.HasField("x") for answer in answers)
        return [value for answer in answers for value in answer.elbo]

    np.testing.assert_allclose(elbo(50), elbo(3), rtol=1e-6)


def test_bad_rows_are_listed_and_do_not_end_the_stream(stub, x):
    files = images.encode_files(x[:6])
    files[1], files[4] = b"not an image", images.encode_files(np.zeros((1, 5, 4), np.uint8))[0]
    bad = pb.StreamReconstructRequest(x=pb.Rows(images=pb.Images(files=files)), include_scores=True)
    after = pb.StreamReconstructRequest(x=codec.to_rows(x[6:9]), offset=6)
    first, second = stub.StreamReconstruct(iter([bad, after]))
    assert [error.row for error in first.errors] == [1, 4]
    assert "not a readable PNG, JPEG or WebP" in first.errors[0].description
    assert "got 4 x 5" in first.errors[1].description
    np.testing.assert_array_equal(codec.from_tensor(first.x.tensor), x[[0, 2, 3, 5]])
    assert len(first.elbo) == 4
    assert not second.errors
    np.testing.assert_array_equal(codec.from_tensor(second.x.tensor), x[6:9])


def test_message_of_wrong_shape_ends_the_stream_and_names_the_field(stub, x):
    wrong = pb.StreamReconstructRequest(x=codec.to_rows(x[:2, :3]))
    stream = stub.StreamReconstruct(iter([*messages(x[:5], 5), wrong]))
    assert next(stream).offset == 0
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "x.tensor.shape" in caught.value.details()


def test_empty_stream_is_ok(stub):
    assert list(stub.StreamReconstruct(iter([]))) == []


def test_server_stops_reading_when_the_client_does_not_read(stub, x):
    """The server reads what gRPC's windows and its two messages hold, and no more."""
    sent = 0
    stopped = threading.Event()

    def endless() -> Iterator[pb.StreamReconstructRequest]:
        nonlocal sent
        rows = np.repeat(x, 80, axis=0)
        for at in itertools.count():
            if stopped.is_set():
                return
            sent = at
            yield pb.StreamReconstructRequest(x=codec.to_rows(rows), offset=at)

    stream = stub.StreamReconstruct(endless())
    assert next(stream).offset == 0
    # While nothing reads this stream, other streams continue; this one stops.
    others, reached = messages(np.repeat(x, 80, axis=0)[:1000], 10), [-1, 0]
    while reached[-1] != reached[-2]:
        assert len(list(stub.StreamReconstruct(iter(others)))) == 100
        reached.append(sent)
        assert sent < 1000, reached  # 64 MB
    stopped.set()
    stream.cancel()


def test_client_gets_a_result_for_each_chunk(server, x):
    with Client(server.target, background=True) as client:
        chunks = [x[at : at + 8] for at in range(0, len(x), 8)]
        answers = list(client.stream_reconstruct(iter(chunks), include_scores=True, in_flight=2))
        wanted = client.reconstruct(x, include_scores=True)
    assert [answer.offset for answer in answers] == list(range(0, len(x), 8))
    np.testing.assert_array_equal(np.concatenate([answer.x for answer in answers]), x)
    elbo = np.concatenate([answer.elbo for answer in answers])
    np.testing.assert_allclose(elbo, wanted.elbo, rtol=1e-6)


def test_client_reads_no_more_chunks_than_may_be_in_flight(server, x):
    read = 0

    def chunks() -> Iterator[np.ndarray]:
        nonlocal read
        for at in range(0, len(x), 5):
            read += 1
            yield x[at : at + 5]

    with Client(server.target) as client:
        for number, _ in enumerate(client.stream_reconstruct(chunks(), in_flight=3), 1):
            assert read <= number + 2
        assert list(client.stream_reconstruct(iter([]))) == []


def test_client_resumes_on_another_server(server, x, toy_bundles, start_server):
    chosen = {"bundles": str(toy_bundles), "provider": "cpu", "port": "0", "metrics_port": "0"}
    chosen |= {"lame_duck_seconds": "0", "drain_seconds": "0.5"}  # the stream outlasts them
    first = type(server)(settings.load_settings(chosen, environment={}))
    port = first.server.port
    answers = []
    with Client(first.target, timeout=None) as client:
        for answer in client.stream_reconstruct(iter(x[:, None]), in_flight=3):
            answers.append(answer)
            if len(answers) == 20:
                first.stop()
                start_server(toy_bundles, port=port)
    assert [answer.offset for answer in answers] == list(range(len(x)))
    np.testing.assert_array_equal(np.concatenate([answer.x for answer in answers]), x)


@pytest.mark.parametrize("kind", ["iterable", "async"])
def test_async_client_streams(server, x, kind):
    read = 0

    def chunks() -> Iterator[np.ndarray]:
        nonlocal read
        for at in range(0, len(x), 5):
            read += 1
            yield x[at : at + 5]

    async def later() -> AsyncIterator[np.ndarray]:
        for chunk in chunks():
            yield chunk

    async def run() -> list:
        answers = []
        async with AsyncClient(server.target) as client:
            source = chunks() if kind == "iterable" else later()
            options = {"draw": True, "seed": 3, "include_scores": True}
            async for answer in client.stream_reconstruct(source, in_flight=3, **options):
                answers.append(answer)
                assert read <= len(answers) + 2
            assert [a async for a in client.stream_reconstruct([])] == []
        return answers

    answers = asyncio.run(run())
    with Client(server.target) as client:
        wanted = client.reconstruct(x, draw=True, seed=3, include_scores=True)
    assert [answer.offset for answer in answers] == list(range(0, len(x), 5))
    np.testing.assert_array_equal(np.concatenate([answer.x for answer in answers]), wanted.x)
    elbo = np.concatenate([answer.elbo for answer in answers])
    np.testing.assert_allclose(elbo, wanted.elbo, rtol=1e-6)


def test_async_client_resumes_on_another_server(server, x, toy_bundles, start_server):
    chosen = {"bundles": str(toy_bundles), "provider": "cpu", "port": "0", "metrics_port": "0"}
    chosen |= {"lame_duck_seconds": "0", "drain_seconds": "0.5"}  # the stream outlasts them
    first = type(server)(settings.load_settings(chosen, environment={}))
    port = first.server.port

    async def run() -> list:
        answers = []
        async with AsyncClient(first.target, timeout=None) as client:
            async for answer in client.stream_reconstruct(iter(x[:, None]), in_flight=3):
                answers.append(answer)
                if len(answers) == 20:
                    await asyncio.to_thread(first.stop)
                    await asyncio.to_thread(start_server, toy_bundles, port=port)
        return answers

    answers = asyncio.run(run())
    assert [answer.offset for answer in answers] == list(range(len(x)))
    np.testing.assert_array_equal(np.concatenate([answer.x for answer in answers]), x)
