"""A content type other than gRPC's. gRPC's core removes the header, so the server cannot reject
such a call (with 415, as gRPC over HTTP/2 asks for). It is a call like any other.
"""

from __future__ import annotations

import pytest

from latentd.pb import vae_pb2 as pb
from tests.support.http2 import Connection, body, call, message

SAMPLE = "/vae.v1.VaeService/Sample"
REQUEST = message(pb.SampleRequest(count=3, seed=7).SerializeToString())
GRPC = b"application/grpc"
TYPES = {
    "none": None,
    "empty": b"",
    "a page": b"text/html; charset=utf-8",
    "a form": b"application/x-www-form-urlencoded",
    "JSON": b"application/json",
    "gRPC-Web": b"application/grpc-web+proto",
    "gRPC and more": b"application/grpc+json",
    "not text": b"\xff\xfe\x80",
    "10 KB": b"x" * 10_000,
}


@pytest.fixture(scope="module", params=["core", "aio"])
def port(request, module_serve, toy_bundles):
    flags = ("--workers", "1", "--listener", request.param)
    target, _ = module_serve("--bundles", str(toy_bundles), *flags).ready()
    return int(target.rpartition(":")[2])


def sample(connection: Connection, stream: int, content_type: bytes | None):
    if content_type is None:
        head = call(stream, SAMPLE, without=b"content-type")
    else:
        head = call(stream, SAMPLE, (b"content-type", content_type))
    connection.send(head + body(stream, REQUEST))
    return connection.wait_for(stream)[0]


@pytest.mark.parametrize("content_type", TYPES.values(), ids=TYPES.keys())
def test_content_type_changes_nothing(port, content_type):
    with Connection(port) as connection:
        usual, got = sample(connection, 1, GRPC), sample(connection, 3, content_type)
        assert (got.status, got.data) == (0, usual.data)
        # Never the client's value: a browser must not take this for a page.
        assert got.headers[b"content-type"] == GRPC
        assert sample(connection, 5, GRPC).data == usual.data
