"""Reads one ONNX file of a model that was trained elsewhere, whole and into memory.

Its weights may be in other files, but only in the folder of the graph or below it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError

from latentd.training import graph_checks
from latentd.training.errors import AdmissionError, TrainingError

MAX_BYTES: Final = (1 << 31) - 1
"""Of a graph with its weights: no protobuf message can be larger."""
_LEAST_OPSET: Final = 11
_LEAST_IR: Final = 8  # earlier ones list weights among the inputs


@dataclass
class OnnxFile:
    """A graph, and the digests of the files that it was read from."""

    path: Path
    model: onnx.ModelProto
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> {sha256, bytes}

    @property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """The graph's inputs that are not weights."""
        weights = {tensor.name for tensor in self.model.graph.initializer}
        return [value for value in self.model.graph.input if value.name not in weights]

    @property
    def opset(self) -> int:
        """The version of the standard operators that it uses."""
        return graph_checks.opset(self.model)

    def cut(self, outputs: Iterable[str]) -> None:
        """Leave only these outputs, which may be tensors inside the graph, and what they need."""
        graph, wanted = self.model.graph, list(outputs)
        declared = {value.name: value for value in graph.output}
        known = set(declared) | {name for node in graph.node for name in node.output}
        for name in wanted:
            if name not in known:
                raise TrainingError(
                    f"{self.path} has no tensor named {name!r}; its outputs are "
                    f"{', '.join(declared)}."
                )
        values = [declared.get(name, onnx.ValueInfoProto(name=name)) for name in wanted]
        needed, nodes = set(wanted), []
        for node in reversed(graph.node):
            if needed & set(node.output):
                needed |= _names_read(node)
                nodes.append(node)
        weights = [tensor for tensor in graph.initializer if tensor.name in needed]
        for repeated, kept in (
            (graph.output, values),
            (graph.node, nodes[::-1]),
            (graph.initializer, weights),
        ):
            copies: list[Any] = []
            for message in kept:
                copies.append(type(message)())
                copies[-1].CopyFrom(message)
            del repeated[:]
            repeated.extend(copies)

    def reject_random(self) -> None:
        """Raise AdmissionError if it draws random numbers or is in training mode."""
        if node := graph_checks.random_node(self.model):
            raise AdmissionError(
                f"{self.path} draws random numbers or is in training mode: node "
                f"{node.name or node.output[0]!r} is {node.op_type}. Export the model in "
                "evaluation mode and without the draw; or name the tensors before the draw under "
                "[tensors] in the card, and the graph is cut there."
            )


def read(path: Path) -> OnnxFile:
    """Read a graph with all of its weights. Raises TrainingError."""
    data = _bytes(path, path.name)
    try:
        model = onnx.load_from_string(data)
    except DecodeError:
        raise TrainingError(f"{path} is not an ONNX file.") from None
    if not model.graph.node:
        raise TrainingError(f"{path} is not an ONNX file, or its graph is empty.")
    file = OnnxFile(path, model, {path.name: digest(data)})
    _embed(file)
    _prepare(file)
    return file


def exported(model: onnx.ModelProto, name: str) -> OnnxFile:
    """A graph that was exported just now. Raises TrainingError.

    name: in place of its path in messages
    """
    file = OnnxFile(Path(name), model)
    _prepare(file)
    return file


def _prepare(file: OnnxFile) -> None:
    """Check the graph, and remove what the bundle must not have."""
    path, model = file.path, file.model
    if model.ByteSize() > MAX_BYTES:
        raise TrainingError(f"{path} has more than 2 GiB with its weights: too many to embed.")
    if not any(entry.domain in ("", "ai.onnx") for entry in model.opset_import):
        raise TrainingError(f"{path} does not say which opset it uses.")
    if file.opset < _LEAST_OPSET:
        raise TrainingError(
            f"{path} uses opset {file.opset}; export it with opset {_LEAST_OPSET} or newer "
            "(18 suits most nets)."
        )
    inputs = file.inputs
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, _LEAST_IR)
    # ONNX Runtime infers these again; their names of axes could be those of a bundle.
    del model.graph.value_info[:]
    del model.graph.quantization_annotation[:]
    del model.training_info[:]


def _names_read(node: onnx.NodeProto) -> set[str]:
    """The tensors that a node needs, also in its branches and bodies."""
    names = set(node.input)
    for graph in graph_checks.subgraphs(node):
        names |= {value.name for value in graph.output}
        for inner in graph.node:
            names |= _names_read(inner)
    return names


def _embed(file: OnnxFile) -> None:
    """Read the tensors that are in other files."""
    contents: dict[str, bytes] = {}
    for tensor in graph_checks.tensors(file.model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if location not in contents:
            contents[location] = _bytes(_inside(file.path, location), location)
            file.files[location] = digest(contents[location])
        data = contents[location]
        try:
            start = int(entries.get("offset", "0"))
            length = int(entries.get("length", len(data) - start))
        except ValueError:
            start = length = -1
        if not 0 <= start <= start + length <= len(data):
            raise TrainingError(
                f"{file.path}: {tensor.name} is not where the graph says in {location}, which has "
                f"{len(data)} bytes. Copy that file again."
            )
        tensor.raw_data = data[start : start + length]
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _inside(graph: Path, location: str) -> Path:
    """The file of external data. Raises AdmissionError if it is not below the graph's folder."""
    try:
        path = (graph.parent / location).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle; NUL in the name
        raise AdmissionError(
            f"{graph} keeps weights in {location!r}, which no file can be: {error}. Export the "
            "model in one file."
        ) from None
    if not location or not path.is_relative_to(graph.parent.resolve()):
        raise AdmissionError(
            f"{graph} keeps weights in {location!r}, which is outside its folder. Copy the file "
            "into that folder and name it in the graph by a relative path, or export the model in "
            "one file."
        )
    return path


def _bytes(path: Path, name: str) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TrainingError(f"{name} has more than 2 GiB, which no bundle's graph can have.")
        return path.read_bytes()
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}.") from None


def digest(data: bytes) -> dict[str, Any]:
    """Of a file, as a manifest's origin has it."""
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
