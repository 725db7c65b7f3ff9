"""No response holds NaN or infinity: the error names the row that causes it, or is INTERNAL."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message

from latentd import codec
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from tests.support.echo_bundle import HUGE, SIZE, publish_echo

Codes = grpc.StatusCode


@pytest.fixture(scope="module", params=["core", "aio"])
def server(request, tmp_path_factory, module_servers):
    root = tmp_path_factory.mktemp("echo")
    publish_echo(root)
    return module_servers(root, listener=request.param)


@pytest.fixture(scope="module")
def stub(server) -> Iterator[VaeServiceStub]:
    with grpc.insecure_channel(server.target) as channel:
        yield VaeServiceStub(channel)


def rows(*values: float) -> np.ndarray:
    return np.array([[value] * SIZE for value in values], np.float32)


def requests(values: np.ndarray) -> dict[str, tuple[str, Message]]:
    """By name: a method and a request with these rows, as x or as z."""
    x, z = codec.to_rows(values), codec.to_tensor(values)
    last_x, last_z = codec.to_rows(values[-1:]), codec.to_tensor(values[-1:])
    middle = pb.LatentAnchor(z=codec.to_tensor(rows(0.5)))
    return {
        "encode": ("Encode", pb.EncodeRequest(x=x)),
        "encode, drawn": ("Encode", pb.EncodeRequest(x=x, draw=True)),
        "decode": ("Decode", pb.DecodeRequest(z=z)),
        "params": ("Decode", pb.DecodeRequest(z=z, output=pb.DECODE_OUTPUT_PARAMS)),
        "reconstruct": ("Reconstruct", pb.ReconstructRequest(x=x)),
        "scores": ("Reconstruct", pb.ReconstructRequest(x=x, include_scores=True, draw=True)),
        "score": ("Score", pb.ScoreRequest(x=x, draws=40)),
        "from x": (
            "Interpolate",
            pb.InterpolateRequest(start=pb.LatentAnchor(x=last_x), end=middle, steps=3),
        ),
        "to z": (
            "Interpolate",
            pb.InterpolateRequest(start=middle, end=pb.LatentAnchor(z=last_z), steps=3),
        ),
    }


NAMES = tuple(requests(rows(0)))
ERROR_STARTS = {
    "decode": "z: row 1",
    "params": "z: row 1",
    "from x": "start.x: row 0",
    "to z": "end: step",
}


@pytest.mark.parametrize("name", NAMES)
def test_row_is_named_when_the_model_computes_nan_for_it(stub, name):
    method, request = requests(rows(0.5, HUGE))[name]
    with pytest.raises(grpc.RpcError) as refused:
        getattr(stub, method)(request)
    assert refused.value.code() is Codes.INVALID_ARGUMENT
    details = refused.value.details()
    assert details.startswith(ERROR_STARTS.get(name, "x: row 1"))
    assert "makes the model compute NaN or infinity" in details


def numbers(message: Message) -> Iterator[np.ndarray]:
    """All numbers of a message, those in tensors too."""
    for field, value in message.ListFields():
        if isinstance(value, pb.Tensor):
            yield codec.from_tensor(value)
        elif field.message_type is not None and not field.is_repeated:
            yield from numbers(value)
        elif field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
            yield np.atleast_1d(value)


@pytest.mark.parametrize("value", [3.4e38, -3.4e38, HUGE, 1e30, 1e25, -1e20, 1.5e19, 1e10, 1e-40])
def test_response_is_finite_or_invalid_argument(stub, value):
    for method, request in requests(rows(0.5, value)).values():
        call = getattr(stub, method).future(request)
        assert call.code() in (Codes.OK, Codes.INVALID_ARGUMENT), method
        if call.code() is Codes.OK:
            assert all(np.isfinite(array).all() for array in numbers(call.result())), method


def test_path_that_leaves_float32_is_invalid_argument(stub):
    start, end = np.full((1, SIZE), 3.4e38, np.float32), np.full((1, SIZE), 3.4e38, np.float32)
    start[0, ::2] *= -1
    ends = [pb.LatentAnchor(z=codec.to_tensor(z)) for z in (start, end)]
    with pytest.raises(grpc.RpcError) as refused:
        stub.Interpolate(pb.InterpolateRequest(start=ends[0], end=ends[1], steps=3))
    assert refused.value.code() is Codes.INVALID_ARGUMENT


def test_stream_leaves_bad_rows_out_and_returns_the_others(stub):
    request = pb.StreamReconstructRequest(
        x=codec.to_rows(rows(0.5, HUGE, 0.25)), include_scores=True, include_latents=True
    )
    (answer,) = stub.StreamReconstruct(iter([request]))
    assert [(e.row, e.description) for e in answer.errors] == [
        (1, "makes the model compute NaN or infinity")
    ]
    np.testing.assert_array_equal(codec.from_tensor(answer.x.tensor), rows(0.5, 0.25))
    assert len(answer.elbo) == 2
    assert all(np.isfinite(array).all() for array in numbers(answer))


@pytest.fixture
def faulty(server, monkeypatch):
    """Make the server's decoder return NaN for each batch of more than one row."""
    (model,) = server.server.repository.models()
    graph = model.loaded.decoder.graph
    run = type(graph).run

    def run_wrong(self, rows, names):
        outputs = run(self, rows, names)
        if self is graph and len(rows) > 1:
            outputs = [np.where(np.isfinite(array), np.nan, array) for array in outputs]
            outputs = [array.astype(np.float32) for array in outputs]
        return outputs

    monkeypatch.setattr(type(graph), "run", run_wrong)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Sample", pb.SampleRequest(count=2)),
        ("StreamSamples", pb.StreamSamplesRequest(count=2)),
        ("Decode", pb.DecodeRequest(z=codec.to_tensor(rows(0.5, 0.25)))),
        ("Reconstruct", pb.ReconstructRequest(x=codec.to_rows(rows(0.5, 0.25)))),
    ],
)
def test_nan_that_no_row_causes_is_internal(stub, faulty, method, request_):
    call = getattr(stub, method)
    call = call(request_) if method == "StreamSamples" else call.future(request_)
    assert call.code() is Codes.INTERNAL
