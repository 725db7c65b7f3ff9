"""Bad input over the wire: the right status, the field named, and the server keeps serving."""

from __future__ import annotations

import math
import struct
import zlib

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from latentd import codec
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from tests.support.echo_bundle import publish_echo

GOOD = np.zeros((1, 4, 4), np.uint8)


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.target) as channel:
        yield VaeServiceStub(channel)


@pytest.fixture(autouse=True)
def _still_serving(stub):
    yield
    assert stub.Sample(pb.SampleRequest(count=1)).x.tensor.data


def tensor(data_type: int, shape: list[int], data: bytes) -> pb.Tensor:
    return pb.Tensor(dtype=data_type, shape=shape, data=data)


def image(**changed) -> pb.Rows:
    parts = {"data_type": pb.DATA_TYPE_UINT8, "shape": [1, 4, 4], "data": bytes(16)} | changed
    return pb.Rows(tensor=tensor(**parts))


def latent(*values: float) -> pb.Tensor:
    z = np.zeros((1, 16), np.float32)
    z[0, : len(values)] = values
    return codec.to_tensor(z)


def png(width: int, height: int, mode: int = 0, body: bytes | None = None) -> bytes:
    """A PNG made here, so that its header may claim anything."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    channels = {0: 1, 2: 3, 6: 4}[mode]
    pixels = b"".join(b"\0" + bytes(width * channels) for _ in range(min(height, 64)))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(pixels) if body is None else body)
        + chunk(b"IEND", b"")
    )


def pngs(*files: bytes) -> pb.Rows:
    return pb.Rows(images=pb.Images(files=files))


START, END = (
    pb.LatentAnchor(sample=pb.SampledPoint(seed=1)),
    pb.LatentAnchor(sample=pb.SampledPoint(seed=2)),
)

BAD = {
    "no rows": ("Encode", pb.EncodeRequest(), "x"),
    "wrong dtype": (
        "Encode",
        pb.EncodeRequest(x=image(data_type=pb.DATA_TYPE_FLOAT32, data=bytes(64))),
        "x.tensor.dtype",
    ),
    "dtype unspecified": ("Encode", pb.EncodeRequest(x=image(data_type=0)), "x.tensor.dtype"),
    "dtype unknown": (
        "Encode",
        pb.EncodeRequest(x=image(data_type=77)),
        "x.tensor.dtype",
    ),
    "wrong shape": (
        "Encode",
        pb.EncodeRequest(x=image(shape=[1, 8, 8], data=bytes(64))),
        "x.tensor.shape",
    ),
    "no row axis": ("Encode", pb.EncodeRequest(x=image(shape=[4, 4])), "x.tensor.shape"),
    "zero rows": ("Encode", pb.EncodeRequest(x=image(shape=[0, 4, 4], data=b"")), "x.tensor.shape"),
    "negative rows": ("Encode", pb.EncodeRequest(x=image(shape=[-1, 4, 4])), "x.tensor.shape"),
    "rows beyond the limit": (
        "Encode",
        pb.EncodeRequest(x=image(shape=[2**40, 4, 4])),
        "x.tensor.shape",
    ),
    "too few bytes": ("Encode", pb.EncodeRequest(x=image(data=bytes(15))), "x.tensor.data"),
    "too many bytes": (
        "Reconstruct",
        pb.ReconstructRequest(x=image(data=bytes(17))),
        "x.tensor.data",
    ),
    "not a PNG": ("Encode", pb.EncodeRequest(x=pngs(b"GIF89a")), "x.images.files[0]"),
    "the second PNG of the wrong size": (
        "Encode",
        pb.EncodeRequest(x=pngs(png(4, 4), png(5, 4))),
        "x.images.files[1]",
    ),
    "a PNG that claims a gigapixel": (
        "Encode",
        pb.EncodeRequest(x=pngs(png(65500, 65500))),
        "x.images.files[0]",
    ),
    "a color PNG for a gray model": (
        "Encode",
        pb.EncodeRequest(x=pngs(png(4, 4, mode=2))),
        "x.images.files[0]",
    ),
    "a PNG with damaged pixels": (
        "Encode",
        pb.EncodeRequest(x=pngs(png(4, 4, body=b"not zlib"))),
        "x.images.files[0]",
    ),
    "an empty list of PNGs": ("Encode", pb.EncodeRequest(x=pngs()), "x.images.files"),
    "no latents": ("Decode", pb.DecodeRequest(), "z"),
    "NaN": ("Decode", pb.DecodeRequest(z=latent(0, math.nan)), "z.data"),
    "infinity": ("Decode", pb.DecodeRequest(z=latent(math.inf)), "z.data"),
    "latents of another size": (
        "Decode",
        pb.DecodeRequest(z=codec.to_tensor(np.zeros((1, 3), "f4"))),
        "z.shape",
    ),
    "an unknown output": ("Decode", pb.DecodeRequest(z=latent(0), output=9), "output"),
    "parameters as PNG": (
        "Decode",
        pb.DecodeRequest(z=latent(0), output=pb.DECODE_OUTPUT_PARAMS, format=pb.FORMAT_PNG),
        "format",
    ),
    "an unknown format": ("Sample", pb.SampleRequest(count=1, format=9), "format"),
    "count 0": ("Sample", pb.SampleRequest(), "count"),
    "count 2^31": ("Sample", pb.SampleRequest(count=2**31), "count"),
    "negative temperature": ("Sample", pb.SampleRequest(count=1, temperature=-1), "temperature"),
    "temperature NaN": ("Sample", pb.SampleRequest(count=1, temperature=math.nan), "temperature"),
    "an offset beyond the last row": ("Sample", pb.SampleRequest(count=1, offset=2**63), "offset"),
    "a stream of nothing": ("StreamSamples", pb.StreamSamplesRequest(), "count"),
    "a stream beyond the last row": (
        "StreamSamples",
        pb.StreamSamplesRequest(count=2**64 - 1),
        "offset",
    ),
    "chunks beyond the limit": (
        "StreamSamples",
        pb.StreamSamplesRequest(count=1, chunk_rows=2**31),
        "chunk_rows",
    ),
    "no anchors": ("Interpolate", pb.InterpolateRequest(steps=3), "start"),
    "one step": ("Interpolate", pb.InterpolateRequest(start=START, end=END, steps=1), "steps"),
    "10^9 steps": (
        "Interpolate",
        pb.InterpolateRequest(start=START, end=END, steps=10**9),
        "steps",
    ),
    "an unknown path": (
        "Interpolate",
        pb.InterpolateRequest(start=START, end=END, steps=2, path=7),
        "path",
    ),
    "an anchor of two rows": (
        "Interpolate",
        pb.InterpolateRequest(
            start=START, end=pb.LatentAnchor(z=codec.to_tensor(np.zeros((2, 16), "f4"))), steps=3
        ),
        "end.z.shape",
    ),
    "10^9 draws": ("Score", pb.ScoreRequest(x=image(), draws=10**9), "draws"),
}


@pytest.mark.parametrize(("method", "request_", "field"), BAD.values(), ids=BAD.keys())
def test_bad_input_names_its_field(stub, method, request_, field):
    with pytest.raises(grpc.RpcError) as failed:
        list(getattr(stub, method)(request_)) if "Stream" in method else getattr(stub, method)(
            request_
        )
    error = failed.value
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    details = status_pb2.Status.FromString(
        dict(error.trailing_metadata())["grpc-status-details-bin"]
    )
    bad = error_details_pb2.BadRequest()
    assert details.details[0].Unpack(bad)
    assert bad.field_violations[0].field == field
    assert error.details() == f"{field}: {bad.field_violations[0].description}"
    assert error.details().endswith(".")


def test_unknown_model_or_version_is_not_found(stub):
    for request in (
        pb.SampleRequest(model="missing", count=1),
        pb.SampleRequest(version=9, count=1),
    ):
        with pytest.raises(grpc.RpcError) as failed:
            stub.Sample(request)
        assert failed.value.code() == grpc.StatusCode.NOT_FOUND
        assert "toy" in failed.value.details() or "1" in failed.value.details()


def test_invalid_message_is_invalid_argument(server):
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary("/vae.v1.VaeService/Sample")
        with pytest.raises(grpc.RpcError) as failed:
            call(b"\xff\xff\xff\xff")
    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "vae.v1.SampleRequest" in failed.value.details()


def test_too_large_message_is_resource_exhausted(start_server, toy_bundles):
    server = start_server(toy_bundles, max_message_mib=1)
    with grpc.insecure_channel(server.target) as channel:
        stub = VaeServiceStub(channel)
        with pytest.raises(grpc.RpcError) as failed:
            stub.Encode(pb.EncodeRequest(x=image(data=bytes(2 << 20))))
        assert failed.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stub.Sample(pb.SampleRequest(count=1)).x.tensor.data


def test_png_is_invalid_argument_when_data_is_not_8_bit_images(start_server, tmp_path):
    publish_echo(tmp_path)
    with grpc.insecure_channel(start_server(tmp_path).target) as channel:
        stub = VaeServiceStub(channel)
        for request, call in (
            (pb.SampleRequest(model="echo", count=1, format=pb.FORMAT_PNG), stub.Sample),
            (pb.EncodeRequest(model="echo", x=pngs(png(4, 4))), stub.Encode),
        ):
            with pytest.raises(grpc.RpcError) as failed:
                call(request)
            assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_error_quotes_a_long_request_only_in_part(stub):
    with pytest.raises(grpc.RpcError) as failed:
        stub.Sample(pb.SampleRequest(model="x" * 1_000_000, count=1))
    assert failed.value.code() == grpc.StatusCode.NOT_FOUND
    assert 500 < len(failed.value.details()) <= 1000
