"""Models that ask for admission: the good one of spatial_bundle, and what is inserted to spoil it.

spoiled(encoder=inserted("mean", nodes, constants))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.numpy_helper import from_array

from latentd import bundle
from latentd.training.adopt.admission import admit
from latentd.training.adopt.candidate import Candidate
from latentd.training.errors import AdmissionError
from tests.support.spatial_bundle import (
    LOG_VAR,
    decoded,
    encoded,
    spatial_files,
    spatial_manifest,
)

Change = Callable[[onnx.ModelProto], None]

BEFORE = "before"
"""What inserted nodes take."""
AFTER = "after"
"""What inserted nodes give."""


class Same:
    """A reference that computes what the graphs do. They need not load before it is asked."""

    def __init__(self, encoder: bytes, decoder: bytes) -> None:
        self._encoder, self._decoder = encoder, decoder

    def encode(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, log_var = _run(self._encoder, ["mean", "log_var"], {"x": x})
        return mean, log_var

    def decode(self, z: np.ndarray) -> np.ndarray:
        return _run(self._decoder, ["x"], {"z": z})[0]


def _run(graph: bytes, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    arrays: list[np.ndarray] = session.run(outputs, inputs)
    return arrays


def spoiled(
    encoder: Change | None = None,
    decoder: Change | None = None,
    manifest: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Candidate:
    """The good candidate with changed graphs, manifest or other fields.

    Its reference computes the same unless it is among `fields`.
    """
    files = spatial_files()
    graphs = [
        _changed(files[bundle.ENCODER], encoder),
        _changed(files[bundle.DECODER], decoder),
    ]
    others: dict[str, Any] = {"images": (picture(),), "reference": Same(*graphs)}
    return Candidate(spatial_manifest(**(manifest or {})), *graphs, **(others | fields))


def picture(size: int = 96, colors: tuple[float, float, float] = (1.0, 0.8, 0.6)) -> np.ndarray:
    """Blocks of random brightness in shades of one color, uint8 (size, size, 3)."""
    brightness = np.random.default_rng(1).random((size // 16, size // 16, 1))
    blocks = (255 * brightness * np.array(colors)).astype(np.uint8)
    result: np.ndarray = blocks.repeat(16, axis=0).repeat(16, axis=1)
    return result


def inserted(
    value: str, nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Any] | None = None
) -> Change:
    """Insert nodes after a value: they take BEFORE and give AFTER in its place."""

    def change(model: onnx.ModelProto) -> None:
        names = {BEFORE: f"{value}_before", AFTER: value}
        at = 0
        for index, node in enumerate(model.graph.node):
            if value in node.output:
                at = index + 1
                outputs = [names[BEFORE] if name == value else name for name in node.output]
                del node.output[:]
                node.output.extend(outputs)
        if not at:  # an input: those that take it take what the nodes give
            names = {BEFORE: value, AFTER: f"{value}_after"}
            for node in model.graph.node:
                _rename(node.input, {value: names[AFTER]})
        for index, node in enumerate(nodes):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            _rename(copy.input, names)
            _rename(copy.output, names)
            model.graph.node.insert(at + index, copy)
        model.graph.initializer.extend(
            from_array(np.asarray(array), name) for name, array in (constants or {}).items()
        )

    return change


def _rename(values: Any, names: Mapping[str, str]) -> None:
    renamed = [names.get(name, name) for name in values]
    del values[:]
    values.extend(renamed)


def _changed(graph: bytes, change: Change | None) -> bytes:
    if change is None:
        return graph
    model = onnx.load_from_string(graph)
    change(model)
    onnx.checker.check_model(model)
    return model.SerializeToString()


class Numpy:
    """The good model's reference, which uses no graph."""

    def encode(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        mean = encoded(x)
        return mean, np.full_like(mean, LOG_VAR)

    def decode(self, z: np.ndarray) -> np.ndarray:
        return decoded(z)


def refusal(candidate: Candidate) -> str:
    with pytest.raises(AdmissionError) as raised:
        admit(candidate, lambda line: None)
    return str(raised.value)


def lines_of(candidate: Candidate) -> list[str]:
    lines: list[str] = []
    admit(candidate, lines.append)
    return lines
