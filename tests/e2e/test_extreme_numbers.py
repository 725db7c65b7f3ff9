"""Numbers that no client sends, as bytes: rejected by the name of their field, before memory of
their size is allocated."""

from __future__ import annotations

import pytest
from google.rpc import error_details_pb2

from latentd.pb import vae_pb2 as pb
from tests.support.http2 import Connection, body, call, message

MIB = 1 << 20
ROOM = 64 * MIB
INVALID = 3
MINUS_ONE = 2**64 - 1  # ten bytes, as any signed type encodes -1
NUMBERS = {"0": 0, "-1": MINUS_ONE, "2^31": 2**31, "2^32 - 1": 2**32 - 1, "10^9": 10**9}
FIELDS = [
    ("Sample", "count"),
    ("StreamSamples", "chunk_rows"),
    ("Interpolate", "steps"),
    ("Score", "draws"),
]
CASES = [
    pytest.param(*field, number, id=f"{field[1]} {name}")
    for field in FIELDS
    for name, number in NUMBERS.items()
    if number or field[1] in ("count", "steps")  # in the others, 0 lets the server choose
]
GOOD = {
    "Sample": pb.SampleRequest(),
    "StreamSamples": pb.StreamSamplesRequest(count=1),
    "Interpolate": pb.InterpolateRequest(
        start=pb.LatentAnchor(sample=pb.SampledPoint(seed=1)),
        end=pb.LatentAnchor(sample=pb.SampledPoint(seed=2)),
    ),
    "Score": pb.ScoreRequest(
        x=pb.Rows(tensor=pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=[1, 4, 4], data=bytes(16)))
    ),
}


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes((number & 127 | 128,)), number >> 7
    return out + bytes((number,))


@pytest.fixture(scope="module", params=["core", "aio"])
def process(request, module_serve, toy_bundles):
    flags = ("--workers", "1", "--listener", request.param)
    started = module_serve("--bundles", str(toy_bundles), *flags)
    started.ready()
    return started


@pytest.mark.parametrize(("method", "field", "number"), CASES)
def test_extreme_number_is_rejected_by_its_field(process, method, field, number):
    request = GOOD[method]
    tag = varint(request.DESCRIPTOR.fields_by_name[field].number << 3)
    data = message(request.SerializeToString() + tag + varint(number))
    process.forget_peak()
    before = process.memory("VmHWM")
    with Connection(int(process.ready()[0].rpartition(":")[2])) as connection:
        connection.send(call(1, f"/vae.v1.VaeService/{method}"), body(1, data))
        (answer,) = connection.wait_for(1)
    assert answer.status == INVALID
    bad = error_details_pb2.BadRequest()
    assert answer.rich.details[0].Unpack(bad)
    assert bad.field_violations[0].field == field
    assert process.memory("VmHWM") - before < ROOM
