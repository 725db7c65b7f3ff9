"""Memory for batches on a device, and what each thread has of it.

Devices are whatever fits the protocols: cuda.Cuda, and in tests this process's own memory.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from serving.runtime.gpu import GPU

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


def through(
    array: Array,
    takes: Buffer,
    compute: Callable[[], None],
    gives: Sequence[Buffer],
    copies: Stream,
) -> list[Array]:
    """Rows up, what is computed, rows down: asked for in one breath and waited for once.

    compute: asks for what comes between the copies, and that `copies` follow it. The answers, as
    many rows as `array` has, are the caller's own.
    """
    rows = len(array)
    with GPU.use():
        takes.rows[:rows] = array
        takes.upload(rows, copies)
        compute()
        for buffer in gives:
            buffer.download(rows, copies)
        copies.wait()
    return [buffer.rows[:rows].copy() for buffer in gives]


class Bucket(Protocol):
    """All that a batch of one size needs."""

    def close(self) -> None:
        """Give it back; no run may follow."""


B = TypeVar("B", bound=Bucket)


@dataclass(frozen=True, slots=True)
class Hand(Generic[B]):
    """What one thread runs batches with: a stream for its copies, and its buckets by their rows."""

    copies: Stream
    buckets: dict[int, B] = field(default_factory=dict)

    def close(self) -> None:
        """Give all of it back."""
        for bucket in self.buckets.values():
            bucket.close()
        self.buckets.clear()
        self.copies.close()


class Hands(Generic[B]):
    """Each thread's own.

    make: a bucket of so many rows, for a thread that copies on this stream; called while nobody
    else uses the device.
    """

    def __init__(self, device: Device, make: Callable[[int, Stream], B]) -> None:
        self._device, self._make = device, make
        self._hands: dict[threading.Thread, Hand[B]] = {}

    def __iter__(self) -> Any:
        """Those that there are now."""
        return iter(list(self._hands.values()))

    def bucket(self, rows: int) -> tuple[B, Stream]:
        """This thread's for batches of so many rows, made if there is none, and its stream."""
        me = threading.current_thread()
        hand = self._hands.get(me)
        if hand is None or rows not in hand.buckets:
            with GPU.record():
                if hand is None:
                    hand = self._hands[me] = Hand(self._device.stream())
                hand.buckets[rows] = self._make(rows, hand.copies)
        return hand.buckets[rows], hand.copies

    def leave(self) -> None:
        """Give back what is this thread's."""
        with GPU.use():
            hand = self._hands.pop(threading.current_thread(), None)
            if hand:
                hand.close()

    def close(self) -> None:
        """Give back everybody's; while GPU.use() is held."""
        while self._hands:
            self._hands.popitem()[1].close()


def bucket_rows(rows: int) -> int:
    """The least power of two that holds so many rows."""
    return 1 << max(0, rows - 1).bit_length()


def sizes(most_rows: int) -> list[int]:
    """The buckets of batches of up to so many rows: 1, 2, 4, ..."""
    return [1 << power for power in range(bucket_rows(most_rows).bit_length())]
