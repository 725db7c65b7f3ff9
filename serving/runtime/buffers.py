"""Memory for batches, on a device and in this process.

A device is any class that fits the protocols: cuda.Cuda, and in tests this process's own memory.
"""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

RowSpec = tuple[str, tuple[int, ...]]
"""dtype and shape of one row."""


class Allocation(Protocol):
    """Bytes at an address."""

    address: int

    def close(self) -> None:
        """Free them. Idempotent."""


class Stream(Protocol):
    """A queue of a device's work, which runs in order."""

    @property
    def address(self) -> int:
        """Its handle, for a provider's option."""

    def copy(self, destination: int, source: int, nbytes: int) -> None:
        """Queue a copy between two addresses."""

    def wait_stream(self, other: Any) -> None:
        """Later work in this stream waits for the work already in `other`, of the same device."""

    def synchronize(self) -> None:
        """Block until all work is done."""

    def close(self) -> None:
        """Destroy it."""


class Device(Protocol):
    """Where batches are computed."""

    @property
    def name(self) -> str:
        """ONNX Runtime's name of such devices."""

    def create_stream(self) -> Stream:
        """A new stream."""

    def allocate(self, nbytes: int) -> tuple[Allocation, Allocation]:
        """Memory on the device, and as much in this process."""


class Buffer:
    """Rows on the device, and the same rows in this process's memory."""

    def __init__(self, rows: int, row: RowSpec, device: Device) -> None:
        self.shape, self.dtype = (rows, *row[1]), np.dtype(row[0])
        self._row_bytes = int(np.prod(row[1], dtype=np.int64)) * self.dtype.itemsize
        nbytes = rows * self._row_bytes
        self.device, self._host = device.allocate(nbytes)
        host_bytes = memoryview((ctypes.c_ubyte * nbytes).from_address(self._host.address))
        self.rows: NDArray[Any] = np.ndarray(self.shape, self.dtype, host_bytes)
        self.rows[...] = 0

    def upload(self, rows: int, stream: Stream) -> None:
        """Queue a copy of the first rows to the device; the other rows there do not change."""
        stream.copy(self.device.address, self._host.address, rows * self._row_bytes)

    def download(self, rows: int, stream: Stream) -> None:
        """Queue a copy of the first rows from the device."""
        stream.copy(self._host.address, self.device.address, rows * self._row_bytes)

    def close(self) -> None:
        """Free the memory; no copy may follow."""
        self.rows = np.empty(0, self.dtype)
        self.device.close()
        self._host.close()
