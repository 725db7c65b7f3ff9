"""Arbitrary and mutated HTTP/2 frames, sent to the port."""

from __future__ import annotations

import gzip
import socket

import grpc
from hypothesis import given
from hypothesis import strategies as st

from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from latentd.transport import handlers
from tests.support import http2
from tests.support.fuzz_inputs import mutated, wide
from tests.support.fuzz_loop import once, run_repeatedly

SECONDS = 120  # timeout of a call


CALL = (
    http2.PREFACE
    + http2.settings({4: 1 << 20})
    + http2.call(1, f"/{handlers.SERVICE}/Sample", (b"grpc-timeout", b"5S"), (b"x-bin", b"AAAA"))
    + http2.body(1, http2.message(pb.SampleRequest(count=1).SerializeToString()))
    + http2.frame(http2.PING, 0, 0, bytes(8))
    + http2.window(0, 100)
)
PACKED = (
    http2.PREFACE
    + http2.settings({})
    + http2.call(1, f"/{handlers.SERVICE}/Sample", (b"grpc-encoding", b"gzip"))
    + http2.body(1, http2.message(gzip.compress(bytes(1 << 20)), compressed=True))
)


def test_server_keeps_serving_after_any_frames(running, request):
    port = int(running.target.rpartition(":")[2])
    frames = st.tuples(st.integers(0, 12), st.integers(0, 255), wide, st.binary(max_size=64)).map(
        lambda parts: http2.frame(parts[0], parts[1], parts[2] % 2**32, parts[3])
    )
    opening = st.sampled_from([CALL, CALL[: len(http2.PREFACE)], b""])

    @once
    @given(
        st.one_of(
            mutated(CALL),
            mutated(PACKED),
            st.tuples(opening, st.lists(frames)).map(lambda parts: parts[0] + b"".join(parts[1])),
        )
    )
    def property_(data: bytes) -> None:
        with http2.Connection(port, preface=False) as connection:
            connection.socket.sendall(data)
            try:
                connection.socket.shutdown(socket.SHUT_WR)
            except OSError:  # the server has closed it already
                return
            while connection.socket.recv(1 << 16):  # until the server closes it
                pass

    run_repeatedly(property_, request)
    with grpc.insecure_channel(running.target) as channel:
        answer = VaeServiceStub(channel).Sample(pb.SampleRequest(count=1), timeout=SECONDS)
        assert len(answer.x.tensor.data) == 16
