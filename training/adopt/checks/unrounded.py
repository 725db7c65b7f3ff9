"""Forms of the graphs that take and give x as floats, without rounding and without bounds.

A graph that takes bytes begins with their conversion, and one that gives bytes ends with it. So
that values between and beyond bytes pass, the first takes floats, and the second ends earlier.
"""

from __future__ import annotations

from typing import Final

import onnx
from onnx import NodeProto, TensorProto

_TRANSPARENT: Final = ("Transpose", "Identity", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that move values without changing them; x is their first input."""
_BOUNDING: Final = ("Clip", "Round", "Floor", "Min", "Max")
"""Operators that a conversion to bytes has last."""


def encoder(graph: bytes) -> bytes:
    """It takes x as float32, in bytes' units if it took bytes."""
    model = onnx.load_from_string(graph)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return _without_types(model)


def decoder(graph: bytes) -> bytes:
    """It gives x as float32, as it is before the last rounding and clipping."""
    model = onnx.load_from_string(graph)
    producers = {name: node for node in model.graph.node for name in node.output}
    output = next(value for value in model.graph.output if value.name == "x")
    node = producers.get("x")
    while node is not None and (node.op_type == "Cast" or node.op_type in _TRANSPARENT + _BOUNDING):
        if node.op_type == "Cast":
            _pass_on(node)
            node.op_type = "Cast"
            node.attribute.append(onnx.helper.make_attribute("to", TensorProto.FLOAT))
        elif node.op_type in _BOUNDING:
            _pass_on(node)
        node = producers.get(node.input[0])
    output.type.tensor_type.elem_type = TensorProto.FLOAT
    return _without_types(model)


def _pass_on(node: NodeProto) -> None:
    """Make it give its first input."""
    first = node.input[0]
    del node.input[:]
    node.input.append(first)
    node.op_type = "Identity"
    del node.attribute[:]


def _without_types(model: onnx.ModelProto) -> bytes:
    """The types of values inside are not what they were."""
    del model.graph.value_info[:]
    return model.SerializeToString()
