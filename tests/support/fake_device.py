"""A device that is this process's own memory: for bound graphs on ONNX Runtime's CPU provider."""

from __future__ import annotations

import ctypes
from typing import Any

from latentd.runtime.io_binding import IOBindingGraph


class Memory:
    """Bytes of this process."""

    def __init__(self, nbytes: int) -> None:
        self._bytes = ctypes.create_string_buffer(max(nbytes, 1))
        self.address = ctypes.addressof(self._bytes)

    def close(self) -> None:
        self.address = 0


class Stream:
    """Everything asked for here is done already."""

    address = 0

    def copy(self, to: int, origin: int, nbytes: int) -> None:
        assert to == origin

    def follow(self, other: Any) -> None:
        pass

    def wait(self) -> None:
        pass

    def close(self) -> None:
        pass


class HostMemory:
    """Rows on the device are the rows beside it."""

    name = "cpu"

    def stream(self) -> Stream:
        return Stream()

    def memory(self, nbytes: int) -> tuple[Memory, Memory]:
        here = Memory(nbytes)
        return here, here


def buckets(graph: IOBindingGraph) -> list[Any]:
    """All that any thread has of a graph's."""
    return [bucket for hand in graph._hands for bucket in hand.buckets.values()]


def sizes(graph: IOBindingGraph) -> list[int]:
    """Their rows."""
    return sorted(rows for hand in graph._hands for rows in hand.buckets)
