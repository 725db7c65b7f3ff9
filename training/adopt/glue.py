"""Makes the graphs of a bundle: nodes that convert x and z, around the nodes of the owner's graph.

    encoder.onnx: x -> mean, log_var        decoder.onnx: z -> x, params

Every converting node exists unchanged from opset 11 on, so that the owner's opset stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from latentd.shapes import Shape
from latentd.training import graph_checks
from latentd.training.adopt.density import Density
from latentd.training.adopt.net import Net
from latentd.training.adopt.onnx_pair import Graph
from latentd.training.errors import AdmissionError, RunFailed

_OWNER: Final = "owner/"  # begins the names of the owner's tensors, so that none is x or z
_AXES_INPUT_OPSET: Final = 13  # from here on, Split and Unsqueeze take attributes as inputs
_ELEMENTS: Final = {
    "uint8": TensorProto.UINT8,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}
_REVERSED: Final = (2, 1, 0)
_COLOR_AXIS: Final = 3


def encoder(graph: Graph, net: Net, name: str) -> bytes:
    """encoder.onnx. Raises AdmissionError if it is no valid graph.

    name: of the model
    """
    nodes, card = _Nodes(graph.file.opset), net.card
    value = "x"
    if card.color_order == "BGR":
        value = nodes.reverse_colors(value)
    if not net.bytes_in:
        factor, offset = net.affine
        value = nodes.cast(value, "float32")
        value = nodes.add(nodes.multiply(value, factor), offset)
    if net.has_channels_first:
        value = nodes.channels_first(value, len(net.x.dims) + 1)
    nodes.cast(value, graph.dtype, _OWNER + graph.input)
    before, nodes = nodes, _Nodes(graph.file.opset, "after")
    rank = len(net.z.dims) + 1
    outputs = [nodes.cast(_OWNER + output, "float32") for output in graph.outputs]
    if net.joined:
        axis = rank - 1 if net.has_z_channels_last else 1
        outputs = nodes.halve(outputs[0], axis, net.z.dims[0].length)
    if net.has_z_channels_last:
        outputs = [nodes.channels_first(output, rank) for output in outputs]
    scale, shift = (_per_channel(numbers or (), rank) for numbers in (card.scale, card.shift))
    nodes.multiply(nodes.add(outputs[0], -shift), scale, "mean")
    if net.is_gaussian:
        log_var = outputs[1]
        if card.clip_log_var is not None:
            log_var = nodes.clip(log_var, *card.clip_log_var)
        nodes.add(log_var, 2 * np.log(np.abs(scale)), "log_var")
    names = ("mean", "log_var") if net.is_gaussian else ("mean",)
    x = ("x", "uint8" if net.is_image else "float32", net.x)
    return _joined(graph, before, nodes, x, [(n, "float32", net.z) for n in names], name)


def decoder(graph: Graph, net: Net, name: str) -> bytes:
    """decoder.onnx, as `encoder`."""
    nodes, card, rank = _Nodes(graph.file.opset), net.card, len(net.z.dims) + 1
    scale, shift = (_per_channel(numbers or (), rank) for numbers in (card.scale, card.shift))
    value = nodes.add(nodes.multiply("z", 1 / scale), shift)
    if net.has_z_channels_last:
        value = nodes.channels_last(value, rank)
    nodes.cast(value, graph.dtype, _OWNER + graph.input)
    before, nodes = nodes, _Nodes(graph.file.opset, "after")
    values = [_OWNER + output for output in graph.outputs]
    if not net.bytes_out:
        values = [nodes.cast(value, "float32") for value in values]
    if net.density and net.density.learned and len(values) == 1:
        axis = len(net.x.dims) if card.is_channels_last else 1
        values = nodes.halve(values[0], axis, net.x.dims[-1].length)
    if net.density and net.density.swapped:
        values = values[::-1]
    if net.has_channels_first:
        values = [nodes.channels_last(value, len(net.x.dims) + 1) for value in values]
    outputs, value = list[_Value](), values[0]
    if net.density:
        parameters = _parameters(nodes, net, net.density, values)
        nodes.stack(parameters, "params")
        shape = Shape.parse([len(parameters), *net.x.json])
        outputs.append(("params", "float32", shape))
        if net.density.form == "logits":
            value = nodes.sigmoid(value)
    if not net.bytes_out:
        factor, offset = map(np.asarray, net.affine)
        value = nodes.add(nodes.multiply(value, 1 / factor), -offset / factor)
    if card.color_order == "BGR":
        value = nodes.reverse_colors(value)
    if net.is_image and not net.bytes_out:
        value = nodes.round(nodes.clip(value, 0, 255))
    dtype = "uint8" if net.is_image else "float32"
    nodes.cast(value, dtype, "x")
    outputs = [("x", dtype, net.x), *outputs]
    return _joined(graph, before, nodes, ("z", "float32", net.z), outputs, name)


def _parameters(nodes: _Nodes, net: Net, density: Density, values: Sequence[str]) -> list[str]:
    """Of p(x | z) for each element of x, in the units of its density, from what the decoder gives:
    x, and a width if that is learned."""
    if density.is_bernoulli:
        parameters = [values[0]]
    else:
        factor, offset = net.unit
        widen = np.log(np.abs(factor))
        if density.width is not None:
            width = nodes.add(nodes.multiply(values[0], 0), widen + np.log(density.width))
        elif density.form == "log_var":
            width = nodes.add(nodes.multiply(values[1], 0.5), widen)
        else:
            width = nodes.add(values[1], widen)
        parameters = [nodes.add(nodes.multiply(values[0], factor), offset), width]
    if net.card.color_order == "BGR":
        parameters = [nodes.reverse_colors(value) for value in parameters]
    return parameters


class _Nodes:
    """Nodes and their constants. Each method appends a node and returns its output's name."""

    def __init__(self, opset: int, prefix: str = "before") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._opset, self._prefix = opset, prefix

    def cast(self, value: str, dtype: str, name: str = "") -> str:
        return self._add("Cast", [value], name, to=_ELEMENTS[dtype])

    def multiply(self, value: str, factor: Any, name: str = "") -> str:
        return self._add("Mul", [value, self._floats(factor)], name)

    def add(self, value: str, term: Any, name: str = "") -> str:
        return self._add("Add", [value, self._floats(term)], name)

    def clip(self, value: str, low: float, high: float) -> str:
        return self._add("Clip", [value, self._floats(low), self._floats(high)])

    def round(self, value: str) -> str:
        return self._add("Round", [value])

    def sigmoid(self, value: str) -> str:
        return self._add("Sigmoid", [value])

    def stack(self, values: Sequence[str], name: str) -> str:
        """Along a new axis after the first."""
        parts = [self._unsqueeze(value) for value in values]
        return self._add("Concat", parts, name, axis=1)

    def channels_first(self, value: str, rank: int) -> str:
        return self._add("Transpose", [value], perm=[0, rank - 1, *range(1, rank - 1)])

    def channels_last(self, value: str, rank: int) -> str:
        return self._add("Transpose", [value], perm=[0, *range(2, rank), 1])

    def reverse_colors(self, value: str) -> str:
        order = self._constant(np.array(_REVERSED))
        return self._add("Gather", [value, order], axis=_COLOR_AXIS)

    def halve(self, value: str, axis: int, length: int) -> list[str]:
        """Two halves of this length along an axis."""
        outputs = [self._name(), self._name() + "b"]
        if self._opset >= _AXES_INPUT_OPSET:
            inputs = [value, self._constant(np.array([length, length]))]
            node = helper.make_node("Split", inputs, outputs, axis=axis)
        else:
            node = helper.make_node("Split", [value], outputs, axis=axis, split=[length, length])
        self.nodes.append(node)
        return outputs

    def _unsqueeze(self, value: str) -> str:
        if self._opset >= _AXES_INPUT_OPSET:
            return self._add("Unsqueeze", [value, self._constant(np.array([1]))])
        return self._add("Unsqueeze", [value], axes=[1])

    def _add(self, op: str, inputs: Sequence[str], name: str = "", **attributes: Any) -> str:
        output = name or self._name()
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def _floats(self, values: Any) -> str:
        return self._constant(np.asarray(values, np.float32))

    def _constant(self, values: Any) -> str:
        name = f"{self._prefix}/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def _name(self) -> str:
        return f"{self._prefix}/{len(self.nodes)}"


def _per_channel(numbers: Sequence[float], rank: int) -> Any:
    """In a shape that spreads over latents with this many axes, channels first."""
    array = np.asarray(numbers, np.float64)
    return array.reshape(-1, *[1] * (rank - 2)) if len(numbers) > 1 else array.reshape(())


_Value = tuple[str, str, Shape]  # name, dtype, shape of a row


def _joined(
    graph: Graph, before: _Nodes, after: _Nodes, x: _Value, outputs: Sequence[_Value], name: str
) -> bytes:
    """The graph with the converting nodes around it, checked."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.file.model)
    _prefix(model.graph)
    owners = list(model.graph.node)
    for repeated, kept in (
        (model.graph.node, [*before.nodes, *owners, *after.nodes]),
        (model.graph.input, [_value_info(x)]),
        (model.graph.output, [_value_info(value) for value in outputs]),
    ):
        copies: list[Any] = []
        for message in kept:
            copies.append(type(message)())
            copies[-1].CopyFrom(message)
        del repeated[:]
        repeated.extend(copies)
    model.graph.initializer.extend([*before.constants, *after.constants])
    model.graph.name = model.graph.name or name
    helper.set_model_props(model, {"model": name, "created-by": "latentd"})
    axes = {
        value: {0: "batch"} | {i: str(d.json) for i, d in enumerate(shape.dims, 1) if d.axis}
        for value, _, shape in (x, *outputs)
    }
    try:
        graph_checks.check(model, axes)
    except RunFailed as error:
        raise AdmissionError(f"{graph.name}, with nodes that convert x and z: {error}") from None
    return model.SerializeToString()


def _prefix(graph: onnx.GraphProto) -> None:
    """Begin every tensor's name with _OWNER, also in branches and bodies."""
    for node in graph.node:
        for names in (node.input, node.output):
            prefixed = [_OWNER + name if name else "" for name in names]
            del names[:]
            names.extend(prefixed)
        for inner in graph_checks.subgraphs(node):
            _prefix(inner)
    sparse = [s.values for s in graph.sparse_initializer]
    values: Iterable[Any] = (*graph.initializer, *sparse, *graph.input, *graph.output)
    for value in (*values, *graph.value_info):
        value.name = _OWNER + value.name


def _value_info(value: _Value) -> onnx.ValueInfoProto:
    name, dtype, shape = value
    return helper.make_tensor_value_info(name, _ELEMENTS[dtype], ["batch", *shape.json])
