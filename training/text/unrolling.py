"""Repeats the nodes of an exported step: a recurrent graph without Loop or Scan.

Exporting all steps at once takes more than a minute for 64 of them, because the exporter's
optimizer takes time with the square of the nodes. One step takes two seconds, and its copies none.
A graph with Loop or Scan would run on a GPU, but not as a recorded CUDA graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx


class Unrolled:
    """A graph in the making: parts are added to it in order."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._copies = 0

    def add(
        self, part: onnx.GraphProto, weights: str, inputs: Mapping[str, str]
    ) -> Mapping[str, str]:
        """Add a copy of a part's nodes.

        weights: the prefix of its initializers, which all copies of a part share. inputs: the names
        here of its inputs. Returns the names here of its outputs.
        """
        prefix = f"{self._copies}/"
        self._copies += 1
        shared = {tensor.name: f"{weights}/{tensor.name}" for tensor in part.initializer}
        for tensor in part.initializer:
            if shared[tensor.name] not in self.initializers:
                copy = onnx.TensorProto()
                copy.CopyFrom(tensor)
                copy.name = shared[tensor.name]
                self.initializers[copy.name] = copy

        def renamed(name: str) -> str:
            if not name:  # an optional input that is left out
                return name
            return inputs.get(name) or shared.get(name) or prefix + name

        for node in part.node:
            copy_of_node = onnx.NodeProto()
            copy_of_node.CopyFrom(node)
            copy_of_node.name = prefix + node.name
            copy_of_node.input[:] = map(renamed, node.input)
            copy_of_node.output[:] = map(renamed, node.output)
            self.nodes.append(copy_of_node)
        return {value.name: renamed(value.name) for value in part.output}

    def node(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **more: Any) -> None:
        """Add a node of the standard operators."""
        self.nodes.append(onnx.helper.make_node(kind, inputs, outputs, outputs[0], **more))

    def constant(self, tensor: onnx.TensorProto) -> None:
        """Add a tensor under its own name."""
        self.initializers[tensor.name] = tensor
