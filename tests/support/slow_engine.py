"""A graph that takes as long as a test needs."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper

SLOW: Final = np.full((1, 16), 9, np.float32)
"""A latent of the toy that makes the loop run."""


def slow_graph(decoder: bytes, iterations: int, above: float = 5.0) -> bytes:
    """The graph, preceded by a loop of so many iterations if any latent is > `above`; an iteration
    takes about a microsecond."""
    model = onnx.load_from_string(decoder)
    graph = model.graph
    for node in graph.node:
        for at, name in enumerate(node.input):
            if name == "z":
                node.input[at] = "z_after_loop"
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition"], ["condition_out"]),
            helper.make_node("Identity", ["state"], ["state_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("iteration", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("condition_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, None),
        ],
    )
    first = [
        helper.make_node("ReduceMax", ["z"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "threshold"], ["is_above"]),
        helper.make_node("Cast", ["is_above"], ["zero_or_one"], to=TensorProto.INT64),
        helper.make_node("Mul", ["zero_or_one", "max_iterations"], ["iterations"]),
        helper.make_node("Loop", ["iterations", "", "z"], ["z_after_loop"], body=body),
    ]
    graph.initializer.extend(
        [
            helper.make_tensor("threshold", TensorProto.FLOAT, [], [above]),
            helper.make_tensor("max_iterations", TensorProto.INT64, [], [iterations]),
        ]
    )
    nodes = [*first, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model.SerializeToString()
