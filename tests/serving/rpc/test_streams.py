"""A stream is as fast as its client reads; a slow client costs bounded memory and no other call."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import AsyncGeneratorType

import grpc
import pytest

from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub

CHUNK_ROWS = 2048
CHUNK_BYTES = CHUNK_ROWS * (16 + 64)  # x, and z as float32
WINDOW_BYTES = 1 << 20
QUIET_CALLS = 50  # calls of another client during which a stalled stream must not move
MAX_CALLS = 2000  # such calls until the stream must have stalled


@pytest.fixture
def slow(server) -> Iterator[VaeServiceStub]:
    """A client with a flow-control window that does not grow."""
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", WINDOW_BYTES)]
    with grpc.insecure_channel(server.target, options) as channel:
        yield VaeServiceStub(channel)


@pytest.fixture
def other(server) -> Iterator[VaeServiceStub]:
    with grpc.insecure_channel(server.target) as channel:
        yield VaeServiceStub(channel)


def endless() -> pb.StreamSamplesRequest:
    return pb.StreamSamplesRequest(count=10**12, seed=1, chunk_rows=CHUNK_ROWS, include_z=True)


def ask(other: VaeServiceStub) -> None:
    assert len(other.Sample(pb.SampleRequest(count=1), timeout=120).x.tensor.data) == 16


def rows_until_stalled(server, other: VaeServiceStub) -> float:
    """The rows run so far, without the other client's, after their number has stopped growing."""

    def rows() -> float:
        return server.metric("latentd_batch_rows_sum", graph="decoder")

    seen, quiet = rows(), 0
    asked = 0
    while quiet < QUIET_CALLS:
        assert asked < MAX_CALLS, f"{rows() - asked} rows have run and the stream has not stalled"
        ask(other)
        asked += 1
        now = rows() - asked
        quiet, seen = (quiet + 1, seen) if now == seen else (0, now)
    return seen


def streams_alive() -> int:
    return sum(
        isinstance(item, AsyncGeneratorType) and item.ag_code.co_name == "stream_samples"
        for item in gc.get_objects()
    )


def cancel(server, other: VaeServiceStub, streams: list) -> None:
    """Cancel streams and wait until the server has ended them."""

    def ended() -> float:
        labels = {"method": "StreamSamples", "model": "toy", "code": "CANCELLED"}
        return server.metric("latentd_requests_total", **labels)

    before = ended()
    for stream in streams:
        stream.cancel()
    for _ in range(MAX_CALLS):
        if ended() == before + len(streams):
            return
        ask(other)  # takes time
    pytest.fail(f"{ended() - before} of {len(streams)} cancelled streams ended")


def test_client_that_stops_reading_costs_a_few_chunks(server, slow, other):
    before = server.metric("latentd_batch_rows_sum", graph="decoder")
    stream = slow.StreamSamples(endless())
    next(stream)
    made = rows_until_stalled(server, other) - before
    # What flow control and the socket hold, and two chunks that the server makes in advance.
    assert CHUNK_ROWS <= made <= CHUNK_ROWS * (2 + 8 * WINDOW_BYTES // CHUNK_BYTES)
    assert server.metric("latentd_queue_rows", graph="decoder", model="toy", version="1") == 0
    assert streams_alive() == 1
    again = [next(stream) for _ in range(100)]  # reading again continues the stream
    assert [chunk.offset for chunk in again] == [CHUNK_ROWS * n for n in range(1, 101)]
    cancel(server, other, [stream])


def test_cancelled_stalled_streams_leave_nothing(server, slow, other):
    streams = [slow.StreamSamples(endless()) for _ in range(5)]
    for stream in streams:
        next(stream)
    rows_until_stalled(server, other)
    cancel(server, other, streams)
    assert streams_alive() == 0
    for graph in ("encoder", "decoder"):
        assert server.metric("latentd_queue_rows", graph=graph, model="toy", version="1") == 0
