"""Compressed requests are recognized by their first bytes, which no request has."""

from __future__ import annotations

import gzip
import zlib

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from latentd.errors import InvalidArgument, Unsupported
from latentd.pb import vae_pb2 as pb
from latentd.transport.messages import parse

REQUESTS = [
    health_pb2.HealthCheckRequest,
    reflection_pb2.ServerReflectionRequest,
    *(getattr(pb, m.input_type.name) for m in pb.DESCRIPTOR.services_by_name["VaeService"].methods),
]


@pytest.mark.parametrize("kind", REQUESTS)
def test_no_request_starts_like_a_compressed_one(kind):
    # gzip starts like field 3 with a type that protobuf does not have, deflate like field 15.
    assert 15 not in kind.DESCRIPTOR.fields_by_number


@pytest.mark.parametrize("level", range(10))
@pytest.mark.parametrize("size", [0, 1, 1000, 1_000_000])
def test_compressed_request_is_rejected(level, size):
    for packed in (gzip.compress(bytes(size), level), zlib.compress(bytes(size), level)):
        with pytest.raises(Unsupported, match="without compression"):
            parse(pb.SampleRequest, packed)


def test_request_is_parsed_when_only_its_first_byte_is_alike():
    unknown = b"\x78\x00"  # field 15, as a newer client might send it
    assert parse(pb.SampleRequest, unknown + b"\x18\x05").count == 5
    with pytest.raises(InvalidArgument, match="not a valid vae"):
        parse(pb.SampleRequest, b"\x1f\x00")
