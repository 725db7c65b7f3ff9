"""Runs a candidate's graphs, and finds what is wrong with their outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from latentd.bundle import RowShapes
from latentd.training import machine
from latentd.training.adopt.candidate import Candidate
from latentd.training.array import Array
from latentd.training.onnx_session import SILENT, cpu_session, shrink_after_run

Outputs = Mapping[str, Array]

_MAX_REASON: Final = 300
_SOURCE: Final = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src\S* |\S*onnxruntime::\S+?\(.*?\) "
)


class GraphFailed(Exception):
    """A graph does not run, or gives no valid outputs; the message follows "it"."""


class Graph:
    """A graph in a session on the CPU. Raises GraphFailed if it cannot be loaded."""

    def __init__(self, graph: bytes) -> None:
        self._session = _session(graph)
        self._run_options = shrink_after_run()
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, rows: Array) -> dict[str, Array]:
        """All outputs for these rows. Raises GraphFailed."""
        try:
            outputs = self._session.run(self._outputs, {self._input: rows}, self._run_options)
        except Exception as error:
            raise GraphFailed(f"fails: {_reason(error)}") from None
        return dict(zip(self._outputs, outputs, strict=True))


class DensityGraph:
    """likelihood.onnx, likewise."""

    def __init__(self, graph: bytes) -> None:
        self._session = _session(graph)

    def log_prob(self, x: Array, params: Array) -> Array:
        """log p(x | z) of each row. Raises GraphFailed."""
        try:
            (output,) = self._session.run(["log_likelihood"], {"x": x, "params": params})
        except Exception as error:
            raise GraphFailed(f"fails: {_reason(error)}") from None
        return np.asarray(output)


class Pair:
    """The two graphs of a candidate, with outputs checked. Its methods raise GraphFailed."""

    def __init__(self, candidate: Candidate) -> None:
        self._manifest = candidate.manifest
        self.encoder, self.decoder = Graph(candidate.encoder), Graph(candidate.decoder)

    def encode(self, x: Array) -> dict[str, Array]:
        """mean, and log_var unless the latent is a point."""
        shapes = self._manifest.shapes_of_x(x.shape[1:])
        names = ("mean",) if self._manifest.posterior == "point" else ("mean", "log_var")
        expected = {name: (np.dtype(np.float32), shapes.z) for name in names}
        return _checked(self.encoder.run(x), expected, len(x))

    def decode(self, z: Array) -> dict[str, Array]:
        """x, and params if there is a likelihood."""
        shapes: RowShapes = self._manifest.shapes_of_z(z.shape[1:])
        expected = {"x": (np.dtype(shapes.x.dtype), shapes.x.shape)}
        if shapes.params:
            expected["params"] = (np.dtype(np.float32), shapes.params)
        return _checked(self.decoder.run(z), expected, len(z))


def _session(graph: bytes) -> ort.InferenceSession:
    try:  # its log is not for users: every failure becomes an exception
        return cpu_session(graph, machine.cpu_count(), SILENT)
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise GraphFailed(f"cannot be loaded: {_reason(error)}") from None


def _checked(
    outputs: Outputs, expected: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], rows: int
) -> dict[str, Array]:
    for name, (dtype, shape) in expected.items():
        if name not in outputs:
            raise GraphFailed(f"has no output {name}; its outputs are {', '.join(outputs)}")
        found = outputs[name]
        if found.shape != (rows, *shape) or found.dtype != dtype:
            raise GraphFailed(
                f"gives {name} as {found.dtype} {list(found.shape)} instead of {dtype} "
                f"{[rows, *shape]}"
            )
    return {name: outputs[name] for name in expected}


def _reason(error: Exception) -> str:
    """ONNX Runtime's message in one line, without its code and the places in its source."""
    text = _SOURCE.sub("", " ".join(str(error).split())).rstrip(".")
    return text[: _MAX_REASON - 1] + "…" if len(text) > _MAX_REASON else text
