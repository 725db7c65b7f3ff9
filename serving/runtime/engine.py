"""ONNX Runtime: makes a session of a graph's bytes; arrays in, arrays out."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any, Final, Protocol

import onnxruntime as ort
from numpy.typing import NDArray

from latentd.errors import BundleError
from latentd.runtime import external_data
from latentd.runtime.capture_lock import CUDA_CAPTURE
from latentd.runtime.cuda import Cuda, CudaStream
from latentd.runtime.io_binding import IOBindingGraph
from latentd.runtime.provider import Provider
from latentd.runtime.signature import Signature
from latentd.settings import Settings

log = logging.getLogger(__name__)

_SOURCE_LOCATION: Final = re.compile(r"/\S+:\d+ [^(]*\([^)]*\) ")
"""A place in ONNX Runtime's source, as in its errors: clients of ListModels do not need it."""


class Graph(Protocol):
    """One ONNX graph, loaded from bytes that have been verified."""

    def batch_sizes(self, max_rows: int) -> list[int]:
        """The sizes that batches of up to so many rows are padded to; empty: no padding."""

    def run(self, array: NDArray[Any], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Run one batch; `array` has shape (rows, ...). Releases the GIL while the graph runs."""

    def close(self) -> None:
        """Free the session's memory now, even while the graph is referenced; no run may follow."""


class CpuGraph:
    """A graph on the CPU, which runs batches of any size."""

    def __init__(self, session: ort.InferenceSession, input_name: str) -> None:
        self._session, self._input_name = session, input_name

    def batch_sizes(self, max_rows: int) -> list[int]:
        """As Graph.batch_sizes."""
        return []

    def run(self, array: NDArray[Any], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """As Graph.run."""
        arrays: list[NDArray[Any]] = self._session.run(outputs, {self._input_name: array})
        return arrays

    def close(self) -> None:
        """As Graph.close."""
        del self._session


class SessionFactory:
    """Makes sessions on the provider that was chosen when the process started.

    cuda_graphs: capture each bucket's run as a CUDA graph and replay it, if the graph allows it.
    """

    def __init__(self, provider: Provider, cuda_graphs: bool = True) -> None:
        self._provider, self._cuda_graphs = provider, cuda_graphs

    @classmethod
    def from_settings(cls, settings: Settings) -> SessionFactory:
        """Raises ConfigError when CUDA was requested but is not available."""
        provider = Provider(settings.provider, settings.gpu_arena_limit_mib)
        return cls(provider, settings.cuda_graphs)

    @property
    def provider(self) -> str:
        """The provider, by ONNX Runtime's name."""
        return self._provider.name

    @property
    def on_cpu(self) -> bool:
        return self._provider.on_cpu

    def load(self, model: bytes, signature: Signature, threads: int) -> Graph:
        """Make a session of a graph's bytes. threads: for one run, on the CPU.

        Raises BundleError(external | engine | signature).
        """
        external_data.reject(model)
        if self.on_cpu:
            session = self._session(model, threads, fixed=signature.fixed)
            signature.check(session)
            return CpuGraph(session, signature.input[0])
        # ONNX Runtime frees no captured graph, so a graph of many shapes would fill the memory.
        if self._cuda_graphs and signature.fixed:
            try:
                return self._load_bound(model, signature, cuda_graph=True)
            except BundleError as error:
                if error.reason != "engine":
                    raise
                # A node that only the CPU can run, or a shape that depends on values. As text: the
                # error's traceback refers to the session, and the next one may need its memory.
                log.warning("A graph cannot be captured as a CUDA graph: %s", str(error))
        return self._load_bound(model, signature, cuda_graph=False)

    def _load_bound(self, model: bytes, signature: Signature, cuda_graph: bool) -> Graph:
        with ExitStack() as undo:
            with CUDA_CAPTURE.shared():
                stream = undo.enter_context(closing(CudaStream()))
                session = self._session(model, 1, cuda_graph, stream.address, fixed=signature.fixed)
            self._provider.verify(session)
            signature.check(session)
            if self.on_cpu:  # --provider auto has fallen back, and logged it
                return CpuGraph(session, signature.input[0])
            undo.pop_all()  # from here on the graph closes the stream
        graph = IOBindingGraph(session, signature, Cuda(), stream, cuda_graph)
        try:
            if signature.fixed:
                graph.warm_up(1)
        except Exception as error:
            graph.close()
            raise BundleError("engine", f"ONNX Runtime cannot run the graph: {error}") from error
        return graph

    def _session(
        self,
        model: bytes,
        threads: int,
        cuda_graph: bool = False,
        stream: int = 0,
        fixed: bool = True,
    ) -> ort.InferenceSession:
        return new_session(model, self._provider.options(cuda_graph, stream), threads, fixed)


def new_session(
    model: bytes, providers: Sequence[Any], threads: int, fixed: bool
) -> ort.InferenceSession:
    """Make a session of a graph's bytes. fixed: it has no free axes but the batch.

    Raises BundleError(engine).
    """
    options = ort.SessionOptions()
    # ONNX Runtime keeps a plan of its memory for each shape of the input, for good.
    options.enable_mem_pattern = fixed
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Worker threads that spin while they wait would take the CPU from the listener.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only: Provider logs fallbacks
    try:
        return ort.InferenceSession(model, options, providers=providers)
    except Exception as error:  # the runtime has no common base for what it raises
        message = _SOURCE_LOCATION.sub("", " ".join(str(error).split()))
        raise BundleError("engine", f"ONNX Runtime cannot load the graph: {message}") from error
