"""A device that is this process's own memory: for bound graphs on ONNX Runtime's CPU provider."""

from __future__ import annotations

import ctypes
from typing import Any

import onnxruntime as ort

from latentd.runtime.io_binding import IOBindingGraph
from latentd.runtime.signature import Signature


class Allocation:
    """Bytes of this process."""

    def __init__(self, nbytes: int) -> None:
        self._bytes = ctypes.create_string_buffer(max(nbytes, 1))
        self.address = ctypes.addressof(self._bytes)

    def close(self) -> None:
        self.address = 0


class Stream:
    """All work is done before a call returns."""

    address = 0

    def copy(self, destination: int, source: int, nbytes: int) -> None:
        assert destination == source

    def wait_stream(self, other: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        pass


class HostDevice:
    """Its memory is the host's: a buffer's two allocations are one."""

    name = "cpu"

    def create_stream(self) -> Stream:
        return Stream()

    def allocate(self, nbytes: int) -> tuple[Allocation, Allocation]:
        memory = Allocation(nbytes)
        return memory, memory


def bound_graph(model: bytes, signature: Signature) -> IOBindingGraph:
    """A graph that is bound as on a GPU, and computed on the CPU."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return IOBindingGraph(session, signature, HostDevice(), Stream(), cuda_graph=False)


def buckets(graph: IOBindingGraph) -> list[Any]:
    """The buckets of a graph, of all threads."""
    return [bucket for state in graph._thread_buckets for bucket in state.buckets.values()]


def bucket_sizes(graph: IOBindingGraph) -> list[int]:
    """The rows of these buckets."""
    return sorted(rows for state in graph._thread_buckets for rows, _ in state.buckets)
