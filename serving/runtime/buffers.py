"""Memory for batches on a device and beside it.

Devices are whatever fits the protocols: cuda.Cuda, and in tests this process's own memory.
"""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Row = tuple[str, tuple[int, ...]]
"""dtype and shape of one row."""


class Memory(Protocol):
    """Bytes at an address."""

    address: int

    def close(self) -> None:
        """Give them back; again is nothing."""


class Stream(Protocol):
    """An order in which a device does what it is asked for."""

    @property
    def address(self) -> int:
        """What a provider's option names it by."""

    def copy(self, to: int, origin: int, nbytes: int) -> None:
        """Copy between addresses."""

    def follow(self, other: Any) -> None:
        """Do what comes after all that `other`, a stream of the same device, was asked for."""

    def wait(self) -> None:
        """Block until all is done."""

    def close(self) -> None:
        """Give it back."""


class Device(Protocol):
    """Where batches are computed."""

    @property
    def name(self) -> str:
        """ONNX Runtime's name of such devices."""

    def stream(self) -> Stream:
        """A new one."""

    def memory(self, nbytes: int) -> tuple[Memory, Memory]:
        """On the device, and beside it in this process."""


class Buffer:
    """Rows on the device, and the same rows where this process can reach them."""

    def __init__(self, rows: int, row: Row, device: Device) -> None:
        self.shape, self.kind = (rows, *row[1]), np.dtype(row[0])
        self._row_bytes = int(np.prod(row[1], dtype=np.int64)) * self.kind.itemsize
        nbytes = rows * self._row_bytes
        self.there, self._here = device.memory(nbytes)
        bytes_here = memoryview((ctypes.c_ubyte * nbytes).from_address(self._here.address))
        self.rows: Array = np.ndarray(self.shape, self.kind, bytes_here)
        self.rows[...] = 0

    def upload(self, rows: int, stream: Stream) -> None:
        """Have the first rows copied to the device; what follows is what was there before."""
        stream.copy(self.there.address, self._here.address, rows * self._row_bytes)

    def download(self, rows: int, stream: Stream) -> None:
        """Have the first rows copied back."""
        stream.copy(self._here.address, self.there.address, rows * self._row_bytes)

    def close(self) -> None:
        """Give the memory back; no copy may follow."""
        self.rows = np.empty(0, self.kind)
        self.there.close()
        self._here.close()
