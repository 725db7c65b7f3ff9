"""A graph that takes as long as a test wants."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper

SLOW: Final = np.full((1, 16), 9, np.float32)
"""A latent of the toy's that the loop is for."""


def slowed(decoder: bytes, rounds: int, beyond: float = 5.0) -> bytes:
    """The graph, preceded by a loop of so many rounds where a latent is > `beyond`; one takes about
    a microsecond."""
    model = onnx.load_from_string(decoder)
    graph = model.graph
    for node in graph.node:
        for at, name in enumerate(node.input):
            if name == "z":
                node.input[at] = "z_at_last"
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["going_on"]),
            helper.make_node("Identity", ["held"], ["held_on"]),
        ],
        "round",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("going_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held_on", TensorProto.FLOAT, None),
        ],
    )
    first = [
        helper.make_node("ReduceMax", ["z"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "five"], ["beyond"]),
        helper.make_node("Cast", ["beyond"], ["one_or_none"], to=TensorProto.INT64),
        helper.make_node("Mul", ["one_or_none", "many"], ["rounds"]),
        helper.make_node("Loop", ["rounds", "", "z"], ["z_at_last"], body=body),
    ]
    graph.initializer.extend(
        [
            helper.make_tensor("five", TensorProto.FLOAT, [], [beyond]),
            helper.make_tensor("many", TensorProto.INT64, [], [rounds]),
        ]
    )
    nodes = [*first, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model.SerializeToString()
