"""Floats of 16 bits over the wire: accepted where float32 is, and returned on request."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message

from latentd import codec, narrow_floats
from latentd.bundle import DataSpec
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from tests.support.echo_bundle import SIZE, publish_echo
from tests.support.toy_bundle import PublishToy

FORMATS = {"float16": pb.DATA_TYPE_FLOAT16, "bfloat16": pb.DATA_TYPE_BFLOAT16}
LARGE = 1e5  # more than float16 holds


@pytest.fixture(scope="module")
def server(listener, tmp_path_factory, module_servers):
    root = tmp_path_factory.mktemp("bundles")
    publish_echo(root)
    PublishToy()(root)
    return module_servers(root, listener=listener, default_model="echo")


@pytest.fixture(scope="module")
def stub(server) -> Iterator[VaeServiceStub]:
    with grpc.insecure_channel(server.target) as channel:
        yield VaeServiceStub(channel)


def random_rows(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).random((count, SIZE), np.float32)


def narrow(values: np.ndarray, name: str) -> pb.Tensor:
    return codec.to_tensor(narrow_floats.narrowed(values, name))


def rounded(values: np.ndarray, name: str) -> np.ndarray:
    return codec.from_tensor(narrow(values, name)).astype(np.float32)


@pytest.fixture(params=FORMATS)
def name(request) -> str:
    return request.param


def test_16_bit_floats_are_accepted_as_x_and_z(stub, name):
    values, expected = random_rows(), rounded(random_rows(), name)
    x = pb.Rows(tensor=narrow(values, name))
    assert codec.is_narrow(x.tensor)
    encoded = codec.from_tensor(stub.Encode(pb.EncodeRequest(x=x)).mean)
    np.testing.assert_array_equal(encoded, expected)
    decoded = stub.Decode(pb.DecodeRequest(z=narrow(values, name))).x.tensor
    np.testing.assert_array_equal(codec.from_tensor(decoded), expected)
    (streamed,) = stub.StreamReconstruct(iter([pb.StreamReconstructRequest(x=x)]))
    np.testing.assert_array_equal(codec.from_tensor(streamed.x.tensor), expected)
    scores = stub.Score(pb.ScoreRequest(x=x, seed=1))
    wide = stub.Score(pb.ScoreRequest(x=codec.to_rows(expected), seed=1))
    assert (scores.elbo, scores.log_likelihood) == (wide.elbo, wide.log_likelihood)
    start = pb.LatentAnchor(x=pb.Rows(tensor=narrow(values[:1], name)))
    end = pb.LatentAnchor(z=narrow(values[1:2], name))
    path = stub.Interpolate(pb.InterpolateRequest(start=start, end=end, steps=2))
    np.testing.assert_array_equal(codec.from_tensor(path.x.tensor), expected[:2])


def test_many_16_bit_floats_are_accepted(stub, name):
    values = random_rows(4096 * 5)[: 4096 * 4].reshape(-1, SIZE)
    limit = 4096
    x = values[:limit]
    mean = stub.Encode(
        pb.EncodeRequest(x=pb.Rows(tensor=narrow(x, name)), float_dtype=FORMATS[name])
    ).mean
    np.testing.assert_array_equal(codec.from_tensor(mean).astype(np.float32), rounded(x, name))


@pytest.mark.parametrize("bounds", [(-0.3, 2.8), (0.0, 0.1), (-1e5, 1e5)])
def test_bound_that_16_bits_round_outwards_is_the_bound(name, bounds):
    spec = DataSpec("vector", (2,), "float32", bounds)
    values = np.array([bounds], np.float32)
    if abs(bounds[0]) > narrow_floats.LIMITS[name]:
        values[:] = 0
    x, outside = codec.read_rows(pb.Rows(tensor=narrow(values, name)), spec, 1, "x")
    assert outside is None
    low, high = np.float32(bounds)
    assert (x.dtype, low <= x.min(), x.max() <= high) == (np.float32, True, True)
    np.testing.assert_allclose(x, values, rtol=1e-2)


def requests(**extra) -> dict[str, tuple[str, Message]]:
    """By name: a method and a request whose response has float tensors."""
    x, z = codec.to_rows(random_rows()), codec.to_tensor(random_rows())
    ends = {
        "start": pb.LatentAnchor(z=codec.to_tensor(random_rows()[:1])),
        "end": pb.LatentAnchor(sample=pb.SampledPoint(seed=1)),
    }
    params = pb.DECODE_OUTPUT_PARAMS
    return {
        "encode": ("Encode", pb.EncodeRequest(x=x, draw=True, seed=1, **extra)),
        "decode": ("Decode", pb.DecodeRequest(z=z, **extra)),
        "params": ("Decode", pb.DecodeRequest(z=z, output=params, **extra)),
        "sample": ("Sample", pb.SampleRequest(count=3, seed=1, include_z=True, **extra)),
        "stream": (
            "StreamSamples",
            pb.StreamSamplesRequest(count=3, chunk_rows=2, seed=1, include_z=True, **extra),
        ),
        "reconstruct": ("Reconstruct", pb.ReconstructRequest(x=x, **extra)),
        "stream of rows": (
            "StreamReconstruct",
            pb.StreamReconstructRequest(x=x, include_latents=True, **extra),
        ),
        "interpolate": (
            "Interpolate",
            pb.InterpolateRequest(**ends, steps=3, include_z=True, **extra),
        ),
    }


def responses(stub: VaeServiceStub, method: str, request: Message) -> list[Message]:
    call = getattr(stub, method)
    if method == "StreamReconstruct":
        return list(call(iter([request])))
    return list(call(request)) if method == "StreamSamples" else [call(request)]


def tensors(message: Message) -> Iterator[pb.Tensor]:
    for field, value in message.ListFields():
        if isinstance(value, pb.Tensor):
            yield value
        elif field.message_type is not None and not field.is_repeated:
            yield from tensors(value)


@pytest.mark.parametrize("kind", requests())
def test_response_has_the_floats_that_the_request_asks_for(stub, name, kind):
    method, request = requests()[kind]
    wide = [t for r in responses(stub, method, request) for t in tensors(r)]
    assert wide
    assert {tensor.dtype for tensor in wide} == {pb.DATA_TYPE_FLOAT32}
    method, request = requests(float_dtype=FORMATS[name])[kind]
    found = [t for r in responses(stub, method, request) for t in tensors(r)]
    assert {tensor.dtype for tensor in found} == {FORMATS[name]}
    for narrow_one, wide_one in zip(found, wide, strict=True):
        assert len(narrow_one.data) * 2 == len(wide_one.data)
        np.testing.assert_array_equal(
            codec.from_tensor(narrow_one).astype(np.float32),
            rounded(codec.from_tensor(wide_one), name),
        )
    method, request = requests(float_dtype=pb.DATA_TYPE_FLOAT32)[kind]
    assert [t for r in responses(stub, method, request) for t in tensors(r)] == wide


@pytest.mark.parametrize("value", [pb.DATA_TYPE_UINT8, 77])
@pytest.mark.parametrize("kind", requests())
def test_other_data_types_cannot_be_asked_for(stub, kind, value):
    method, request = requests(float_dtype=value)[kind]
    with pytest.raises(
        grpc.RpcError, match=r"float_dtype: .* is not a format of floats"
    ) as refused:
        responses(stub, method, request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_bytes_remain_bytes(stub, name):
    request = pb.SampleRequest(
        model="toy", count=2, seed=1, include_z=True, float_dtype=FORMATS[name]
    )
    response = stub.Sample(request)
    assert response.x.tensor.dtype == pb.DATA_TYPE_UINT8
    assert response.z.dtype == FORMATS[name]


def test_number_that_float16_cannot_hold_is_an_error_that_says_what_can(stub):
    z = codec.to_tensor(np.array([[0] * SIZE, [0, -LARGE, 0, 0]], np.float32))
    request = pb.DecodeRequest(z=z, float_dtype=pb.DATA_TYPE_FLOAT16)
    with pytest.raises(grpc.RpcError) as refused:
        stub.Decode(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == (
        "float_dtype: row 1 holds 100000, beyond the range of float16, 65504. "
        "Use BFLOAT16 or FLOAT32."
    )
    request.float_dtype = pb.DATA_TYPE_BFLOAT16
    assert np.isfinite(codec.from_tensor(stub.Decode(request).x.tensor)).all()


def test_stream_lists_rows_that_float16_cannot_hold(stub):
    x = codec.to_rows(np.array([[0.5] * SIZE, [LARGE] * SIZE, [0.25] * SIZE], np.float32))
    request = pb.StreamReconstructRequest(x=x, float_dtype=pb.DATA_TYPE_FLOAT16)
    (response,) = stub.StreamReconstruct(iter([request]))
    assert [(e.row, e.description) for e in response.errors] == [
        (1, "holds 100000, beyond the range of float16, 65504")
    ]
    np.testing.assert_array_equal(
        codec.from_tensor(response.x.tensor), [[0.5] * SIZE, [0.25] * SIZE]
    )
    request.x.CopyFrom(codec.to_rows(np.full((1, SIZE), LARGE, np.float32)))
    (response,) = stub.StreamReconstruct(iter([request]))
    assert (len(response.errors), response.x.tensor.data) == (1, b"")
