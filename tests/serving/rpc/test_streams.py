"""A stream goes as fast as it is read: a slow reader costs a bounded amount, and nobody else."""

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
QUIET = 50  # calls of somebody else during which a stalled stream must not move
PATIENCE = 2000  # of those calls; a stream that nothing holds back never rests so long


@pytest.fixture
def slow(server) -> Iterator[VaeServiceStub]:
    """A caller with a flow-control window that does not grow by itself."""
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
    assert len(other.Sample(pb.SampleRequest(count=1), timeout=20).x.tensor.data) == 16


def rows_until_stalled(server, other: VaeServiceStub) -> float:
    """Rows run so far, without the other caller's, once they have stopped growing."""

    def rows() -> float:
        return server.metric("latentd_batch_rows_sum", graph="decoder")

    seen, quiet = rows(), 0
    asked = 0
    while quiet < QUIET:
        assert asked < PATIENCE, f"{rows() - asked} rows were run and the stream goes on"
        ask(other)
        asked += 1
        now = rows() - asked
        quiet, seen = (quiet + 1, seen) if now == seen else (0, now)
    return seen


def streams_alive() -> int:
    return sum(
        isinstance(thing, AsyncGeneratorType) and thing.ag_code.co_name == "stream_samples"
        for thing in gc.get_objects()
    )


def cancel(server, other: VaeServiceStub, streams: list) -> None:
    """Cancel streams and see the server end them."""

    def ended() -> float:
        labels = {"method": "StreamSamples", "model": "toy", "code": "CANCELLED"}
        return server.metric("latentd_requests_total", **labels)

    before = ended()
    for stream in streams:
        stream.cancel()
    for _ in range(PATIENCE):
        if ended() == before + len(streams):
            return
        ask(other)  # time passes
    pytest.fail(f"{ended() - before} of {len(streams)} cancelled streams ended")


def test_a_reader_that_stops_costs_a_few_chunks_and_no_one_else(server, slow, other):
    before = server.metric("latentd_batch_rows_sum", graph="decoder")
    stream = slow.StreamSamples(endless())
    next(stream)
    made = rows_until_stalled(server, other) - before
    # What flow control and the socket hold, and the two chunks that the server works ahead.
    assert CHUNK_ROWS <= made <= CHUNK_ROWS * (2 + 8 * WINDOW_BYTES // CHUNK_BYTES)
    assert server.metric("latentd_queue_rows", graph="decoder", model="toy", version="1") == 0
    assert streams_alive() == 1
    again = [next(stream) for _ in range(100)]  # reading on, it goes on where it was
    assert [chunk.offset for chunk in again] == [CHUNK_ROWS * n for n in range(1, 101)]
    cancel(server, other, [stream])


def test_a_stalled_stream_that_is_cancelled_leaves_nothing(server, slow, other):
    streams = [slow.StreamSamples(endless()) for _ in range(5)]
    for stream in streams:
        next(stream)
    rows_until_stalled(server, other)
    cancel(server, other, streams)
    assert streams_alive() == 0
    for graph in ("encoder", "decoder"):
        assert server.metric("latentd_queue_rows", graph=graph, model="toy", version="1") == 0
