"""Graphs with external data are rejected before ONNX Runtime could read the files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

from latentd import bundle
from latentd.errors import BundleError
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from latentd.runtime import external_data

ELSEWHERE = ["weights.bin", "../../etc/passwd", "/etc/passwd", "link.bin", "hard.bin", ""]


def point(tensor: TensorProto, location: str) -> TensorProto:
    """Make a tensor's data external."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("offset", "0"), ("location", location), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def in_an_initializer(model: onnx.ModelProto, location: str) -> None:
    point(next(t for t in model.graph.initializer if t.name == "levels"), location)


def in_a_constant(model: onnx.ModelProto, location: str) -> None:
    value = point(from_array(np.float32(1)), location)
    model.graph.node.append(helper.make_node("Constant", [], ["more"], value=value))


def in_a_list_of_tensors(model: onnx.ModelProto, location: str) -> None:
    values = [from_array(np.float32(1)), point(from_array(np.float32(1)), location)]
    model.graph.node.append(helper.make_node("Custom", [], ["more"], values=values))


def in_a_subgraph(model: onnx.ModelProto, location: str) -> None:
    tensor = point(from_array(np.float32(1), "inner"), location)
    branch = helper.make_graph([], "branch", [], [], [tensor])
    model.graph.node.append(helper.make_node("If", ["levels"], ["more"], then_branch=branch))


def in_a_sparse_tensor(model: onnx.ModelProto, location: str) -> None:
    values, indices = from_array(np.ones(1, np.float32), "s"), from_array(np.zeros(1, np.int64))
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, point(indices, location), [4])
    )


def in_a_function(model: onnx.ModelProto, location: str) -> None:
    constant = helper.make_node(
        "Constant", [], ["y"], value=point(from_array(np.ones(1)), location)
    )
    opset = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("own", "f", [], ["y"], [constant], opset))


PLACES: list[Callable[[onnx.ModelProto, str], None]] = [
    in_an_initializer,
    in_a_constant,
    in_a_list_of_tensors,
    in_a_subgraph,
    in_a_sparse_tensor,
    in_a_function,
]


@pytest.mark.parametrize("location", ELSEWHERE)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_external_tensor_is_found_in_every_place(toy_bundles, place, location):
    good = bundle.load(toy_bundles / "toy" / "1").files[bundle.ENCODER]
    external_data.reject(good)
    model = onnx.load_model_from_string(good)
    place(model, location)
    with pytest.raises(BundleError, match="external file") as error:
        external_data.reject(model.SerializeToString())
    assert error.value.reason == "external"
    assert repr(location) in str(error.value)


def test_external_tensor_without_a_path_is_rejected(toy_bundles):
    model = onnx.load_model_from_string(
        bundle.load(toy_bundles / "toy" / "1").files[bundle.ENCODER]
    )
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(BundleError, match="external file"):
        external_data.reject(model.SerializeToString())


@pytest.mark.parametrize("junk", [b"", b"<html>", b"\xff" * 99, b"\x3a\x7f", b"\x3b" * 20_000])
def test_bytes_that_are_not_a_graph_pass(junk):
    external_data.reject(junk)


@pytest.mark.parametrize("location", ELSEWHERE[:-1])
def test_version_with_external_data_is_rejected_and_the_old_one_still_serves(
    tmp_path: Path, publish_toy, start_server, monkeypatch, location
):
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)  # a runtime that reads the file finds it here
    weights = Path("weights.bin")
    weights.write_bytes(np.float32(255).tobytes())
    Path("link.bin").symlink_to(weights.resolve())
    os.link(weights, "hard.bin")
    root = tmp_path / "models"
    publish_toy(root)
    server = start_server(root)
    model = onnx.load_model_from_string(bundle.load(root / "toy" / "1").files[bundle.ENCODER])
    in_an_initializer(model, location)
    publish_toy(root, encoder_onnx=model.SerializeToString())
    server.scan()
    with grpc.insecure_channel(server.target) as channel:
        stub = VaeServiceStub(channel)
        assert stub.Sample(pb.SampleRequest(count=1)).served_by.version == 1
        (refused,) = (m for m in stub.ListModels(pb.ListModelsRequest()).models if m.reason)
    assert (refused.version.version, refused.state) == (2, pb.MODEL_STATE_FAILED)
    # Clients see only the file name of an absolute path; the log has the whole path.
    assert (Path(location).name if location.startswith("/") else location) in refused.reason
    assert server.metric("latentd_reloads_total", result="rejected", reason="external") == 1
