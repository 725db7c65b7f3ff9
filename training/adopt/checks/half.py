"""Finds what overflows half precision inside a graph.

On a CPU, ONNX Runtime computes chains of half-precision operators in float32, so their last result
is finite where a GPU's is not. Each value on its own shows the overflow.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
import onnx.inliner
from onnx import NodeProto, TensorProto

from latentd.training.adopt.checks.graphs import Graph
from latentd.training.array import Array

_GIVING: Final = ("Constant", "ConstantOfShape", "Expand", "Where")
"""Operators whose values are in the graph, and may be infinite on purpose."""


class HalfValues:
    """A graph that also gives each half-precision value inside."""

    def __init__(self, graph: bytes) -> None:
        model = onnx.inliner.inline_local_functions(onnx.load_from_string(graph))
        typed = onnx.shape_inference.infer_shapes(model).graph.value_info
        names = [v.name for v in typed if v.type.tensor_type.elem_type == TensorProto.FLOAT16]
        for name in names:
            model.graph.output.append(
                onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT16, None)
            )
        self._nodes, self._names = list(model.graph.node), set(names)
        self._graph = Graph(model.SerializeToString())

    def overflow(self, rows: Array) -> NodeProto | None:
        """The first node that makes infinity or NaN of finite numbers, for any of the rows. A mask
        of infinity passes, as it is given, not made."""
        for row in rows:
            values = self._graph.run(row[None])
            finite = {name: bool(np.isfinite(values[name]).all()) for name in self._names}
            for node in self._nodes:
                taken, made = (
                    all(finite.get(name, True) for name in names)
                    for names in (node.input, node.output)
                )
                if taken and not made and node.op_type not in _GIVING:
                    return node
        return None
