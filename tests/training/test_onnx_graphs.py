"""Graphs that cannot be served are rejected."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from latentd.training import onnx_graphs

AXES = {"a": {0: "batch"}, "b": {0: "batch"}}


def graph_of(op: str, **attributes: Any) -> onnx.ModelProto:
    value = onnx.helper.make_tensor_value_info
    one = onnx.TensorProto.FLOAT
    batch = attributes.pop("batch", "batch")
    node = onnx.helper.make_node(op, ["a"], ["b"], **attributes)
    graph = onnx.helper.make_graph(
        [node], "g", [value("a", one, [batch, 2])], [value("b", one, [batch, 2])]
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (graph_of("Dropout"), "training mode: Dropout"),
        (graph_of("RandomNormalLike"), "training mode: RandomNormalLike"),
        (graph_of("Relu", batch=2), "a is frozen to one size of batch"),
        (graph_of("NoSuchOperator"), "not valid ONNX"),
    ],
)
def test_unservable_graph_is_rejected(graph: onnx.ModelProto, words: str) -> None:
    onnx_graphs.check(graph_of("Relu"), AXES)
    with pytest.raises(onnx_graphs.RunFailed, match=words):
        onnx_graphs.check(graph, AXES)
