"""The data that clients send and get never appears in the log."""

from __future__ import annotations

import logging

import grpc
import numpy as np
import pytest

from latentd import codec
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from latentd.runtime.engine import Graph

SECRET = b"secret-must-hide"  # 4 x 4 pixels
Z = np.full((1, 16), 0.123456789, np.float32)
X = pb.Rows(tensor=pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=[1, 4, 4], data=SECRET))
TRACES = ("secret-must", "115, 101, 99", "115 101 99", "0.12345")


@pytest.fixture(params=["core", "aio"])
def stub(request, start_server, toy_bundles, caplog):
    caplog.set_level(logging.DEBUG)
    server = start_server(toy_bundles, listener=request.param, access_log="all", log_level="debug")
    with grpc.insecure_channel(server.target) as channel:
        yield VaeServiceStub(channel)


def call_everything(stub: VaeServiceStub) -> set[grpc.StatusCode]:
    """Make calls that succeed and calls that fail in each way; returns their statuses."""
    wrong = pb.Rows(tensor=pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=[1, 4, 4], data=SECRET[1:]))
    anchor = pb.LatentAnchor(z=codec.to_tensor(Z))
    calls = [
        lambda: stub.Encode(pb.EncodeRequest(x=X, draw=True, seed=7)),
        lambda: stub.Decode(pb.DecodeRequest(z=codec.to_tensor(Z))),
        lambda: stub.Reconstruct(pb.ReconstructRequest(x=X)),
        lambda: list(stub.StreamReconstruct(iter([pb.StreamReconstructRequest(x=X)]))),
        lambda: stub.Score(pb.ScoreRequest(x=X)),
        lambda: stub.Interpolate(pb.InterpolateRequest(start=anchor, end=anchor, steps=3)),
        lambda: stub.Encode(pb.EncodeRequest(x=wrong)),
        lambda: stub.Encode(pb.EncodeRequest(x=pb.Rows(images=pb.Images(files=[SECRET])))),
        lambda: stub.Encode(pb.EncodeRequest(x=X), timeout=1e-6),
    ]
    codes = set()
    for call in calls:
        try:
            call()
            codes.add(grpc.StatusCode.OK)
        except grpc.RpcError as error:
            codes.add(error.code())
    return codes


def test_no_payload_is_logged(stub, caplog, monkeypatch, graph_kind):
    assert {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT} <= call_everything(stub)

    def fail(self: Graph, *args: object) -> None:
        raise RuntimeError("CUDA failure 719: unspecified launch failure")

    monkeypatch.setattr(graph_kind, "run", fail)
    assert grpc.StatusCode.INTERNAL in call_everything(stub)
    text = caplog.text
    assert "CUDA failure 719" in text
    assert "Encode" in text
    assert not [trace for trace in TRACES if trace in text]
