"""ONNX Runtime: bytes to a session, arrays in, arrays out."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, Final, Protocol

import onnxruntime as ort
from numpy.typing import NDArray

from latentd.errors import BundleError
from latentd.runtime import external_data
from latentd.runtime.capture_lock import GPU
from latentd.runtime.cuda import Cuda, Stream
from latentd.runtime.io_binding import IOBindingGraph
from latentd.runtime.provider import Provider
from latentd.settings import Settings

log = logging.getLogger(__name__)

_WHERE: Final = re.compile(r"/\S+:\d+ [^(]*\([^)]*\) ")
"""The place in ONNX Runtime's source that its errors name: not for callers of ListModels."""


@dataclass(frozen=True, slots=True)
class Signature:
    """A graph's input and outputs: name -> (dtype, shape of one row)."""

    input: tuple[str, str, tuple[int, ...]]
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]


class Graph(Protocol):
    """One ONNX graph, loaded from bytes that have been verified."""

    def sizes(self, most_rows: int) -> list[int]:
        """Every size that batches of up to so many rows are run in; empty: each as it comes."""

    def run(self, array: NDArray[Any], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Run one batch; `array` has shape (rows, ...). Releases the GIL while the graph runs."""

    def close(self) -> None:
        """Give the session's memory back now, whoever still holds the graph; no run may follow."""


class CpuGraph:
    """A graph that takes batches as they come: on the CPU."""

    def __init__(self, session: ort.InferenceSession, takes: str) -> None:
        self._session, self._takes = session, takes

    def sizes(self, most_rows: int) -> list[int]:
        """As Graph.sizes."""
        return []

    def run(self, array: NDArray[Any], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """As Graph.run."""
        arrays: list[NDArray[Any]] = self._session.run(outputs, {self._takes: array})
        return arrays

    def close(self) -> None:
        """As Graph.close."""
        del self._session


class SessionFactory:
    """Loads graphs onto the provider that was chosen when the process started.

    cuda_graphs: record what a graph does for each bucket and replay it, where that can be done.
    """

    def __init__(self, provider: Provider, cuda_graphs: bool = True) -> None:
        self._provider, self._cuda_graphs = provider, cuda_graphs

    @classmethod
    def from_settings(cls, settings: Settings) -> SessionFactory:
        """Raises ConfigError when a GPU was asked for and cannot be had."""
        provider = Provider(settings.provider, settings.gpu_arena_limit_mib)
        return cls(provider, settings.cuda_graphs)

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of it."""
        return self._provider.name

    @property
    def on_cpu(self) -> bool:
        return self._provider.on_cpu

    def load(self, model: bytes, signature: Signature, threads: int) -> Graph:
        """Make a session of a graph's bytes, with so many threads for a run if it is on the CPU.

        Raises BundleError(external | engine | signature).
        """
        external_data.refuse(model)
        if self.on_cpu:
            session = self._session(model, threads)
            _check_signature(session, signature)
            return CpuGraph(session, signature.input[0])
        if self._cuda_graphs:
            try:
                return self._bound(model, signature, cuda_graph=True)
            except BundleError as error:
                if error.reason != "engine":
                    raise
                # A node that only the CPU can run, or a shape that depends on values. As text: the
                # error's traceback holds the session, whose memory the next one may need.
                log.warning("A graph cannot be recorded as a CUDA graph: %s", str(error))
        return self._bound(model, signature, cuda_graph=False)

    def _bound(self, model: bytes, signature: Signature, cuda_graph: bool) -> Graph:
        with ExitStack() as undo:
            with GPU.use():
                stream = undo.enter_context(closing(Stream()))
                session = self._session(model, 1, cuda_graph, stream.address)
            self._provider.confirm(session)
            _check_signature(session, signature)
            if self.on_cpu:  # auto has fallen back, aloud
                return CpuGraph(session, signature.input[0])
            undo.pop_all()  # the graph's, from here on
        name, dtype, shape = signature.input
        takes, gives = (name, (dtype, shape)), dict(signature.outputs)
        graph = IOBindingGraph(session, takes, gives, Cuda(), stream, cuda_graph)
        try:
            graph.warm_up(1)
        except Exception as error:
            graph.close()
            raise BundleError("engine", f"ONNX Runtime cannot run the graph: {error}") from error
        return graph

    def _session(
        self, model: bytes, threads: int, cuda_graph: bool = False, stream: int = 0
    ) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning workers would take the event loop's CPU while they wait.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors; what it says of fallbacks is said by Provider
        providers = self._provider.options(cuda_graph, stream)
        try:
            return ort.InferenceSession(model, options, providers=providers)
        except Exception as error:  # the runtime has no common base for what it raises
            said = _WHERE.sub("", " ".join(str(error).split()))
            raise BundleError("engine", f"ONNX Runtime cannot load the graph: {said}") from error


_TYPES: Final = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}


def _check_signature(session: ort.InferenceSession, wanted: Signature) -> None:
    """Refuse a graph whose names, types or shapes are not the contract's."""
    name, dtype, shape = wanted.input
    found = {value.name: value for value in session.get_inputs()}
    if set(found) != {name}:
        raise BundleError("signature", f"The graph's inputs are {sorted(found)}, not ['{name}'].")
    _check_value(found[name], dtype, shape)
    given = {value.name: value for value in session.get_outputs()}
    for output, (dtype, shape) in wanted.outputs.items():
        if output not in given:
            raise BundleError("signature", f"The graph has no output named {output}.")
        _check_value(given[output], dtype, shape)


def _check_value(value: Any, dtype: str, shape: tuple[int, ...]) -> None:
    if _TYPES.get(value.type) != dtype or list(value.shape[1:]) != list(shape):
        raise BundleError(
            "signature",
            f"{value.name} is {value.type} of shape {value.shape}, not {dtype} of shape "
            f"[rows, {', '.join(map(str, shape))}].",
        )
    if isinstance(value.shape[0], int):
        raise BundleError("signature", f"{value.name} has a fixed batch of {value.shape[0]} rows.")
