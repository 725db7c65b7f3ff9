"""Rejects ONNX graphs that cannot be served. It needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import onnx

from latentd.training.errors import RunFailed

_RANDOM: Final = ("Random", "Multinomial", "Bernoulli")
_DROPOUT_TRAINING: Final = 2  # the number of Dropout's input that turns training mode on


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, also those in functions and in the branches and bodies of other nodes."""
    yield from _nodes(model.graph.node)
    for function in model.functions:
        yield from _nodes(function.node)


def _nodes(given: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in given:
        yield node
        for graph in subgraphs(node):
            yield from _nodes(graph.node)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs right below a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that the file holds: weights, and constants of nodes."""
    graphs = [model.graph, *(graph for node in nodes(model) for graph in subgraphs(node))]
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            sparse_tensors = [*attribute.sparse_tensors]
            if attribute.HasField("sparse_tensor"):
                sparse_tensors.append(attribute.sparse_tensor)
            for sparse in sparse_tensors:
                yield from (sparse.values, sparse.indices)


def random_node(model: onnx.ModelProto) -> onnx.NodeProto | None:
    """The first node that draws random numbers or is in training mode."""
    return next(filter(_is_random, nodes(model)), None)


def _is_random(node: onnx.NodeProto) -> bool:
    if node.op_type.startswith(_RANDOM):
        return True
    if any(a.name == "training_mode" and a.i for a in node.attribute):
        return True
    if node.op_type == "Dropout":
        # Without this input it does nothing, as old exporters leave it in graphs.
        return any(node.input[_DROPOUT_TRAINING:])
    # Until opset 13, training mode showed in the number of outputs only.
    return node.op_type == "BatchNormalization" and any(node.output[1:])


def opset(model: onnx.ModelProto) -> int:
    """The version of the standard operators that a graph uses."""
    return next(e.version for e in model.opset_import if e.domain in ("", "ai.onnx"))


def check(model: onnx.ModelProto, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Raise RunFailed if the graph cannot be served: invalid, random, in training mode, with
    external weights, or with an axis that is not free.

    axes: of each input and output: the number and the name of each free axis
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RunFailed(f"The graph is not valid ONNX: {error}.") from None
    if node := random_node(model):
        raise RunFailed(f"The graph is random or in training mode: {node.op_type}.")
    for value in (*model.graph.input, *model.graph.output):
        for axis, name in axes[value.name].items():
            if value.type.tensor_type.shape.dim[axis].dim_param != name:
                raise RunFailed(f"The graph's {value.name} is frozen to one size of {name}.")
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in tensors(model)):
        raise RunFailed("The graph keeps its weights in another file.")
