"""Graphs that cannot be served are rejected."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx import helper

from latentd.training import graph_checks
from latentd.training.errors import RunFailed

AXES = {"a": {0: "batch"}, "b": {0: "batch"}}
OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
FLOAT = onnx.TensorProto.FLOAT


def model_of(*nodes: onnx.NodeProto, batch: int | str = "batch", **more: Any) -> onnx.ModelProto:
    """a (batch, 2) -> b (batch, 2)"""
    values = [helper.make_tensor_value_info(name, FLOAT, [batch, 2]) for name in "ab"]
    true = helper.make_tensor("true", onnx.TensorProto.BOOL, [], [True])
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [true])
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=10, **more)


def graph_of(op: str, *inputs: str, batch: int | str = "batch", **more: Any) -> onnx.ModelProto:
    return model_of(helper.make_node(op, ["a", *inputs], ["b"], **more), batch=batch)


def in_a_branch(op: str) -> onnx.ModelProto:
    out = [helper.make_tensor_value_info("c", FLOAT, None)]
    branch = helper.make_graph([helper.make_node(op, ["a"], ["c"])], "branch", [], out)
    return model_of(helper.make_node("If", ["true"], ["b"], then_branch=branch, else_branch=branch))


def in_a_function(op: str) -> onnx.ModelProto:
    body = [helper.make_node(op, ["p"], ["q"])]
    function = helper.make_function("own", "Layer", ["p"], ["q"], body, OPSETS[:1])
    return model_of(helper.make_node("Layer", ["a"], ["b"], domain="own"), functions=[function])


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (graph_of("Dropout", "", "true"), "training mode: Dropout"),
        (graph_of("RandomNormalLike"), "training mode: RandomNormalLike"),
        (in_a_branch("RandomNormalLike"), "training mode: RandomNormalLike"),
        (in_a_function("RandomNormalLike"), "training mode: RandomNormalLike"),
        (graph_of("Relu", batch=2), "a is frozen to one size of batch"),
        (graph_of("NoSuchOperator"), "not valid ONNX"),
    ],
)
def test_unservable_graph_is_rejected(graph: onnx.ModelProto, words: str) -> None:
    with pytest.raises(RunFailed, match=words):
        graph_checks.check(graph, AXES)


@pytest.mark.parametrize(
    "graph",
    [graph_of("Relu"), graph_of("Dropout"), in_a_branch("Relu"), in_a_function("Relu")],
    ids=["plain", "dropout that does nothing", "in a branch", "in a function"],
)
def test_servable_graph_passes(graph: onnx.ModelProto) -> None:
    graph_checks.check(graph, AXES)


def test_batch_norm_in_training_mode_is_found_in_every_opset() -> None:
    inputs = ["a", "s", "b", "m", "v"]
    now = helper.make_node("BatchNormalization", inputs, ["c"], training_mode=1)
    old = helper.make_node("BatchNormalization", inputs, ["c", "mean", "var"])
    fit = helper.make_node("BatchNormalization", inputs, ["c"])
    for node, found in ((now, True), (old, True), (fit, False)):
        assert (graph_checks.random_node(model_of(node)) is not None) is found
