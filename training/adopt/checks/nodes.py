"""Refuses graphs that draw random numbers, or that are in training mode."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx.inliner

from latentd.training import graph_checks
from latentd.training.adopt.checks.finding import Finding
from latentd.training.adopt.checks.subject import Subject
from latentd.training.errors import AdmissionError


def check(subject: Subject) -> Finding:
    """Look at every node, also in functions, branches and loops."""
    candidate, counts = subject.candidate, dict[str, int]()
    for name, graph in (("encoder", candidate.encoder), ("decoder", candidate.decoder)):
        models = list(_forms(graph))
        for model in models:
            if node := graph_checks.random_node(model):
                raise AdmissionError(_sentence(f"{name}.onnx", node))
        counts[name] = sum(1 for _ in graph_checks.nodes(models[-1]))
    line = f"none among {counts['encoder']} of the encoder and {counts['decoder']} of the decoder"
    return Finding(line, counts)


def _forms(graph: bytes) -> Iterator[onnx.ModelProto]:
    """The graph as it is, and with its functions inserted where they are called, as only there
    their attributes have values."""
    model = onnx.load_from_string(graph)
    yield model
    if model.functions:
        yield onnx.inliner.inline_local_functions(model)


def _sentence(graph: str, node: onnx.NodeProto) -> str:
    name = node.name or f"that gives {node.output[0]}"
    if node.op_type in ("Dropout", "BatchNormalization"):
        return (
            f"{graph} has the node {name}, a {node.op_type} in training mode, so a row's result "
            "depends on chance or on the other rows; expected no such node. Call eval() on the "
            "model before its export, and export it for inference."
        )
    advice = (
        "Export it up to the mean and the log-variance, or name these tensors under [tensors] in "
        "the card, and the graph is cut there"
        if graph.startswith("encoder")
        else "Export it without noise"
    )
    return (
        f"{graph} has the node {name}, a {node.op_type}: it draws random numbers inside, so the "
        f"same row gives another result each time; expected no such node. {advice}."
    )
