"""What each thread runs batches with: a stream for its copies, and one bucket for each batch size.

The sizes are the powers of two. A graph with free axes has them for each shape of a row; those that
were used longest ago are freed when all together would exceed MAX_BYTES.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import onnxruntime as ort

from latentd.runtime.buffers import Buffer, Device, Stream
from latentd.runtime.capture_lock import CUDA_CAPTURE

MAX_BYTES: Final = 1 << 30
"""Limit for the buckets of one thread on the device. The buckets of one shape take less."""

Key = tuple[int, tuple[int, ...]]
"""Rows of a bucket, and the lengths of a row."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """The buffers and options for batches of one size."""

    input: Buffer
    outputs: dict[str, Buffer]
    binding: ort.IOBinding
    options: ort.RunOptions

    @property
    def nbytes(self) -> int:
        """Bytes of its buffers on the device."""
        return sum(buffer.rows.nbytes for buffer in (self.input, *self.outputs.values()))

    def close(self) -> None:
        """Free the memory; no run may follow."""
        for buffer in (self.input, *self.outputs.values()):
            buffer.close()


@dataclass(frozen=True, slots=True)
class ThreadState:
    """One thread's stream for copies, and its buckets, the last one used at the end."""

    copy_stream: Stream
    buckets: OrderedDict[Key, Bucket] = field(default_factory=OrderedDict)

    def make_room(self, kept: Key) -> None:
        """Free the buckets used longest ago until all fit into MAX_BYTES; never `kept`."""
        total = sum(bucket.nbytes for bucket in self.buckets.values())
        for key in list(self.buckets):
            if total <= MAX_BYTES or key == kept:
                return
            bucket = self.buckets.pop(key)
            total -= bucket.nbytes
            bucket.close()

    def close(self) -> None:
        """Free everything."""
        for bucket in self.buckets.values():
            bucket.close()
        self.buckets.clear()
        self.copy_stream.close()


class ThreadBuckets:
    """The state of each thread, created on the thread's first run.

    build_bucket: makes a bucket of so many rows of such lengths, for a thread that copies on this
    stream; called while no other thread uses the device.
    """

    def __init__(
        self, device: Device, build_bucket: Callable[[int, tuple[int, ...], Stream], Bucket]
    ) -> None:
        self._device, self._build_bucket = device, build_bucket
        self._states: dict[threading.Thread, ThreadState] = {}

    def __iter__(self) -> Iterator[ThreadState]:
        """The current states."""
        return iter(list(self._states.values()))

    def bucket(self, rows: int, lengths: tuple[int, ...]) -> tuple[Bucket, Stream]:
        """This thread's bucket of so many rows of such lengths, built if it is missing, and its
        stream."""
        thread, key = threading.current_thread(), (rows, lengths)
        state = self._states.get(thread)
        if state is None or key not in state.buckets:
            with CUDA_CAPTURE.exclusive():
                if state is None:
                    state = self._states[thread] = ThreadState(self._device.create_stream())
                state.buckets[key] = self._build_bucket(rows, lengths, state.copy_stream)
                state.make_room(key)
        state.buckets.move_to_end(key)
        return state.buckets[key], state.copy_stream

    def warm_up(self, max_rows: int, lengths: tuple[int, ...]) -> None:
        """Build this thread's buckets of up to so many rows. Raises what `build_bucket` raises."""
        for rows in bucket_sizes(max_rows):
            self.bucket(rows, lengths)

    def release_thread(self) -> None:
        """Free this thread's state."""
        with CUDA_CAPTURE.shared():
            state = self._states.pop(threading.current_thread(), None)
            if state:
                state.close()

    def close(self) -> None:
        """Free the states of all threads. The caller holds CUDA_CAPTURE."""
        while self._states:
            self._states.popitem()[1].close()


def bucket_rows(rows: int) -> int:
    """The smallest power of two that holds so many rows."""
    return 1 << max(0, rows - 1).bit_length()


def bucket_sizes(max_rows: int) -> list[int]:
    """The buckets for batches of up to so many rows: 1, 2, 4, ..."""
    return [1 << power for power in range(bucket_rows(max_rows).bit_length())]
