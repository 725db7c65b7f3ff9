"""Rows that are not finite are counted by model and graph, logged, and never become pixels."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper
from prometheus_client import CollectorRegistry

from latentd import bundle, codec
from latentd.metrics import Metrics
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from latentd.rpc.finite import NonfiniteRows
from tests.support.echo_bundle import HUGE, SIZE, publish_echo
from tests.support.onnx_graphs import serialized
from tests.support.toy_bundle import LATENT_SIZE, SHAPE, toy_files, toy_manifest

FAR = 1e20  # its square is more than float32 holds
COUNT = 64


def publish_hidden(root: Path, model: str, scale: float, precision: str) -> None:
    """The toy bundle with a decoder whose logits are NaN where the square of scale * z overflows.
    Its x is bytes, so NaN becomes some color there."""
    decoder = serialized(
        [
            helper.make_node("Mul", ["z", "scale"], ["scaled"]),
            helper.make_node("Mul", ["scaled", "scaled"], ["square"]),
            helper.make_node("Mul", ["square", "zero"], ["zeros"]),
            helper.make_node("Add", ["z", "zeros"], ["logits"]),
            helper.make_node("Reshape", ["logits", "parameters"], ["params"]),
            helper.make_node("Clip", ["logits", "zero", "one"], ["unit"]),
            helper.make_node("Mul", ["unit", "levels"], ["pixels"]),
            helper.make_node("Round", ["pixels"], ["rounded"]),
            helper.make_node("Cast", ["rounded"], ["bytes"], to=TensorProto.UINT8),
            helper.make_node("Reshape", ["bytes", "image"], ["x"]),
        ],
        {"z": ("float32", (LATENT_SIZE,))},
        {"x": ("uint8", SHAPE), "params": ("float32", (1, *SHAPE))},
        {
            "scale": np.float32(scale),
            "zero": np.float32(0),
            "one": np.float32(1),
            "levels": np.float32(255),
            "parameters": np.array([-1, 1, *SHAPE]),
            "image": np.array([-1, *SHAPE]),
        },
    )
    manifest = dataclasses.replace(toy_manifest(model), precision=precision)
    bundle.publish(root, manifest, toy_files() | {bundle.DECODER: decoder})


@pytest.fixture(scope="module")
def server(tmp_path_factory, module_servers):
    root = tmp_path_factory.mktemp("bundles")
    publish_echo(root)
    publish_hidden(root, "bytes", 1, "float32")
    publish_hidden(root, "half", 1e19, "float16")  # NaN where z > 1.84
    return module_servers(root, default_model="echo")


@pytest.fixture(scope="module")
def stub(server) -> Iterator[VaeServiceStub]:
    with grpc.insecure_channel(server.target) as channel:
        yield VaeServiceStub(channel)


@pytest.fixture
def counted(server):
    """How many rows have been counted since the test began, by model and graph."""

    def count(model: str, graph: str) -> float:
        return server.metric("latentd_nonfinite_rows_total", model=model, graph=graph)

    start = {(m, g): count(m, g) for m in ("echo", "half") for g in ("encoder", "decoder")}
    return lambda model, graph: count(model, graph) - start[model, graph]


def floats(*values: float) -> np.ndarray:
    return np.array([[value] * SIZE for value in values], np.float32)


def test_rows_are_counted_once_by_the_graph_that_computed_them(stub, counted):
    x, z = codec.to_rows(floats(HUGE, 0.5, HUGE)), codec.to_tensor(floats(HUGE, 0.5, 0.5))
    end = pb.LatentAnchor(x=codec.to_rows(floats(HUGE)))
    start = pb.LatentAnchor(z=codec.to_tensor(floats(0.5)))
    for call, request in (
        (stub.Encode, pb.EncodeRequest(x=x, draw=True)),
        (stub.Reconstruct, pb.ReconstructRequest(x=x, include_scores=True)),
        (stub.Score, pb.ScoreRequest(x=x, draws=2)),
        (stub.Decode, pb.DecodeRequest(z=z)),
        (stub.Decode, pb.DecodeRequest(z=z, output=pb.DECODE_OUTPUT_PARAMS)),
        (stub.Interpolate, pb.InterpolateRequest(start=start, end=end, steps=2)),
    ):
        with pytest.raises(grpc.RpcError):
            call(request)
    list(stub.StreamReconstruct(iter([pb.StreamReconstructRequest(x=x)])))
    assert counted("echo", "encoder") == 2 + 2 + 2 + 1 + 2
    assert counted("echo", "decoder") == 1 + 1
    stub.Reconstruct(pb.ReconstructRequest(x=codec.to_rows(floats(0.5))))
    assert counted("echo", "encoder") == 9


def rejected(call) -> str:
    with pytest.raises(grpc.RpcError) as refused:
        list(call) if isinstance(call, grpc.Call) and hasattr(call, "__next__") else call()
    return f"{refused.value.code().name}: {refused.value.details()}"


def far_latents() -> pb.Tensor:
    z = np.full((2, LATENT_SIZE), 0.5, np.float32)
    z[1, 3] = FAR
    return codec.to_tensor(z)


def test_bytes_that_would_hide_nan_are_not_returned_for_latents_far_away(stub):
    request = pb.DecodeRequest(model="bytes", z=far_latents())
    expected = "INVALID_ARGUMENT: z: row 1 makes the model compute NaN or infinity"
    assert rejected(lambda: stub.Decode(request)).startswith(expected)
    request.format = pb.FORMAT_PNG
    assert rejected(lambda: stub.Decode(request)).startswith(expected)
    far = np.full((1, LATENT_SIZE), -FAR, np.float32)
    path = pb.InterpolateRequest(
        model="bytes",
        start=pb.LatentAnchor(sample=pb.SampledPoint(seed=1)),
        end=pb.LatentAnchor(z=codec.to_tensor(far)),
        steps=4,
    )
    assert rejected(lambda: stub.Interpolate(path)).startswith("INVALID_ARGUMENT: end: step")
    near = codec.to_tensor(np.full((2, LATENT_SIZE), 30.0, np.float32))
    assert stub.Decode(pb.DecodeRequest(model="bytes", z=near)).x.tensor.data == b"\xff" * 32


def test_float16_bundle_that_overflows_gives_errors_and_not_pixels(stub, counted):
    z = codec.from_tensor(
        stub.Sample(pb.SampleRequest(model="bytes", count=COUNT, seed=3, include_z=True)).z
    )
    bad = (np.abs(z) > 1.84).any(axis=1)
    assert 0 < bad.sum() < COUNT
    request = pb.SampleRequest(model="half", count=COUNT, seed=3)
    assert rejected(lambda: stub.Sample(request)).startswith("INTERNAL: ")
    assert counted("half", "decoder") == bad.sum()
    stream = stub.StreamSamples(pb.StreamSamplesRequest(model="half", count=COUNT, seed=3))
    assert stream.code() is grpc.StatusCode.INTERNAL
    x = codec.to_rows(np.full((2, *SHAPE), 255, np.uint8))  # its mean is 1
    draw = pb.ReconstructRequest(model="half", x=x, draw=True, seed=1)
    for seed in range(50):  # until a draw leaves what it can decode
        draw.seed = seed
        call = stub.Reconstruct.future(draw)
        if call.code() is not grpc.StatusCode.OK:
            break
    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
    first = pb.StreamReconstructRequest(model="half", x=x, draw=True, seed=seed)
    (answer,) = stub.StreamReconstruct(iter([first]))
    assert [error.description for error in answer.errors] == [
        "makes the model compute NaN or infinity"
    ] * len(answer.errors)
    assert len(answer.errors) in (1, 2)
    good = int(np.flatnonzero(~bad)[0])
    one = stub.Sample(pb.SampleRequest(model="half", count=1, seed=3, offset=good))
    assert len(one.x.tensor.data) == 16


def test_log_names_the_model_once_a_minute(caplog):
    now = [100.0]
    rows = NonfiniteRows(Metrics(CollectorRegistry()), lambda: now[0])
    digits, photos = (
        SimpleNamespace(manifest=SimpleNamespace(model=name)) for name in ("digits", "photos")
    )
    bad = np.array([[np.nan], [1], [np.inf]], np.float32)
    with caplog.at_level(logging.WARNING, "latentd.rpc.finite"):
        for seconds, model in ((0, digits), (1, digits), (2, photos), (59, digits), (60, digits)):
            now[0] = 100.0 + seconds
            rows.add(model, encoder=(bad, None))
    assert [record.getMessage() for record in caplog.records] == [
        "digits computed NaN or infinity for 2 rows. They were rejected.",
        "photos computed NaN or infinity for 2 rows. They were rejected.",
        "digits computed NaN or infinity for 6 rows. They were rejected.",
    ]
