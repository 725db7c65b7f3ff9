"""Bytes that no client sends: the server answers or closes, keeps serving, bounds its memory."""

from __future__ import annotations

import gzip
import os
import random
import re

import pytest

from latentd.pb import vae_pb2 as pb
from tests.support import http2
from tests.support.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    Connection,
    block,
    body,
    call,
    frame,
    message,
)

OK, CANCELLED, INVALID, EXPIRED, EXHAUSTED, UNIMPLEMENTED, INTERNAL = 0, 1, 3, 4, 8, 12, 13
MIB = 1 << 20
INTERNALS = re.compile(rb'Traceback|File "|\.py\b|\.cc:|/tmp/|/root|site-packages|0x[0-9a-f]{6}')
SAMPLE = "/vae.v1.VaeService/Sample"
GOOD = message(pb.SampleRequest(count=1, seed=7).SerializeToString())
GZIP = (b"grpc-encoding", b"gzip")
BOMB = message(gzip.compress(bytes(40 * MIB)), compressed=True)


CALLS = {
    "a good call": (call(1, SAMPLE), body(1, GOOD), {OK}),
    "no message": (call(1, SAMPLE, end=True), b"", {INVALID}),
    "a message cut off": (call(1, SAMPLE), body(1, GOOD[:-1]), {INVALID}),
    "a prefix cut off": (call(1, SAMPLE), body(1, GOOD[:3]), {INVALID}),
    "a prefix that claims more than is sent": (
        call(1, "/vae.v1.VaeService/GetModel"),
        body(1, message(b"", length=100)),
        {INVALID},
    ),
    "a prefix that claims 2 GB": (
        call(1, SAMPLE),
        body(1, message(b"x", length=2**31 - 1), end=False),
        {EXHAUSTED},
    ),
    "a prefix that claims 4 GB": (
        call(1, SAMPLE),
        body(1, message(b"x", length=2**32 - 1), end=False),
        {EXHAUSTED},
    ),
    "an unknown flag": (call(1, SAMPLE), body(1, b"\7" + GOOD[1:]), {INVALID, INTERNAL}),
    "compressed without an encoding": (
        call(1, SAMPLE),
        body(1, message(b"x", compressed=True)),
        {INTERNAL},
    ),
    "compressed with an unknown encoding": (
        call(1, SAMPLE, (b"grpc-encoding", b"zip9")),
        body(1, message(b"x", compressed=True)),
        {INTERNAL, UNIMPLEMENTED},
    ),
    "a gzip stream cut off": (
        call(1, SAMPLE, GZIP),
        body(1, message(gzip.compress(bytes(99))[:-9], compressed=True)),
        {UNIMPLEMENTED},
    ),
    "40 MiB of zeros in 40 KiB of gzip": (call(1, SAMPLE, GZIP), body(1, BOMB), {UNIMPLEMENTED}),
    "12 KB of metadata": (call(1, SAMPLE, (b"x-more", b"x" * 12_000)), body(1, GOOD), {OK}),
    "20 KB of metadata": (
        call(1, SAMPLE, (b"x-more", b"x" * 20_000)),
        body(1, GOOD),
        {EXHAUSTED},
    ),
    "1 MB of metadata": (
        call(1, SAMPLE, (b"x-more", b"x" * 1_000_000)),
        body(1, GOOD),
        {EXHAUSTED},
    ),
    "1,000 pieces of metadata": (
        call(1, SAMPLE, *((b"x-%d" % i, b"x" * 10) for i in range(1000))),
        body(1, GOOD),
        {OK, EXHAUSTED},
    ),
    "metadata that is not text": (call(1, SAMPLE, (b"x-more", b"\xff\xfe")), body(1, GOOD), {OK}),
    "metadata that is not base64": (call(1, SAMPLE, (b"x-bin", b"!")), body(1, GOOD), {INTERNAL}),
    "an invalid timeout": (
        call(1, SAMPLE, (b"grpc-timeout", b"soon")),
        body(1, GOOD),
        {INTERNAL},
    ),
    "a timeout of 0": (call(1, SAMPLE, (b"grpc-timeout", b"0n")), body(1, GOOD), {EXPIRED}),
    "a timeout of 11,000 years": (
        call(1, SAMPLE, (b"grpc-timeout", b"99999999H")),
        body(1, GOOD),
        {OK},
    ),
    "another content type": (
        call(1, SAMPLE, (b"content-type", b"text/html")),
        body(1, GOOD),
        {None, OK, UNIMPLEMENTED},  # gRPC's core ignores it
    ),
    "GET": (call(1, SAMPLE, method=b"GET"), body(1, GOOD), {None}),
    "no path": (call(1, SAMPLE, without=b":path"), body(1, GOOD), {None}),
    "an empty path": (call(1, ""), body(1, GOOD), {UNIMPLEMENTED}),
    "an unknown method": (call(1, SAMPLE + "s"), body(1, GOOD), {UNIMPLEMENTED}),
    "an unknown service": (call(1, "/etc/passwd"), body(1, GOOD), {UNIMPLEMENTED}),
    "a long path": (call(1, "/" + "x" * 10_000), body(1, GOOD), {UNIMPLEMENTED}),
}


@pytest.mark.parametrize(("head", "rest", "statuses"), CALLS.values(), ids=CALLS.keys())
def test_invalid_call_is_rejected_and_reveals_no_internals(port, head, rest, statuses):
    with Connection(port) as connection:
        connection.send(head, rest)
        (got,) = connection.wait_for(1)
        assert got.status in statuses, got
        assert not INTERNALS.search(connection.heard)
        assert len(connection.heard) < 4096


def test_server_survives_a_path_that_is_not_utf8(watched):
    # It makes grpc.aio stop its server and close every connection; the listener must restart it.
    target, _ = watched.ready()
    with Connection(int(target.rpartition(":")[2])) as connection:
        connection.send(call(1, "/\xff\xfe"), body(1, GOOD))
        (got,) = connection.wait_for(1)
        assert got.status in (UNIMPLEMENTED, CANCELLED)
    if got.status == CANCELLED:
        watched.wait_for("restarting it")
    watched.answer()


def test_invalid_token_is_not_logged(watched, port):
    with Connection(port) as connection:
        head = call(1, SAMPLE, (b"authorization", b"Bearer s3cret\xff"))
        connection.send(head, body(1, GOOD))
        assert connection.wait_for(1)[0].status == OK
    assert "s3cret" not in "".join(watched.log)


def tls(connection: Connection) -> None:
    connection.send(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + os.urandom(512))


def garbage(connection: Connection) -> None:
    connection.send(random.Random(7).randbytes(100_000))


def http1(connection: Connection) -> None:
    connection.send(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")


def garbage_after_preface(connection: Connection) -> None:
    connection.send(http2.PREFACE, http2.settings({}), random.Random(8).randbytes(100_000))


OTHER_PROTOCOLS = {f.__name__: f for f in (tls, garbage, http1, garbage_after_preface)}


@pytest.mark.parametrize("send", OTHER_PROTOCOLS.values(), ids=OTHER_PROTOCOLS.keys())
def test_connection_with_another_protocol_is_closed(port, send):
    with Connection(port, preface=False) as connection:
        send(connection)
        assert not INTERNALS.search(connection.drain())


VIOLATIONS = {
    "a window past 2^31": http2.window(0, 2**31 - 1) * 2,
    "a window update of 0": http2.window(0, 0),
    "a frame larger than allowed": frame(DATA, 0, 1, bytes(1 << 20)),
    "data on no stream": frame(DATA, 0, 0, b"x"),
    "headers on no stream": frame(HEADERS, END_HEADERS, 0, block([(b":method", b"GET")])),
    "an even stream": call(2, SAMPLE),
    "a stream id lower than the last": call(9, SAMPLE) + call(3, SAMPLE),
    "an invalid header index": frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\x7f"),
    "a header table of 2 GB": frame(HEADERS, END_HEADERS, 1, b"\x3f\xe1\xff\xff\xff\x07"),
    "a continuation without headers": frame(CONTINUATION, END_HEADERS, 1, b""),
    "headers interrupted by another frame": frame(HEADERS, 0, 1, b"") + frame(PING, 0, 0, bytes(8)),
    "a ping of 7 bytes": frame(PING, 0, 0, bytes(7)),
    "settings of 5 bytes": frame(SETTINGS, 0, 0, bytes(5)),
    "an initial window past 2^31": http2.settings({4: 2**31}),
    "a reset of an unknown stream": frame(RST_STREAM, 0, 99, bytes(4)),
}


@pytest.mark.parametrize("sent", VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_protocol_violation_affects_only_its_own_connection(port, sent):
    with Connection(port) as connection, Connection(port) as other:
        connection.send(sent, frame(PING, 0, 0, b"still up"))
        while not connection.pongs and connection.read():
            pass
        assert not INTERNALS.search(connection.heard)
        other.send(call(1, SAMPLE), body(1, GOOD))
        assert other.wait_for(1)[0].status == OK
