"""What each thread runs batches with: a stream for its copies, and one bucket for each batch size.

The sizes are the powers of two.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import onnxruntime as ort

from latentd.runtime.buffers import Buffer, Device, Stream
from latentd.runtime.capture_lock import CUDA_CAPTURE


@dataclass(frozen=True, slots=True)
class Bucket:
    """The buffers and options for batches of one size."""

    input: Buffer
    outputs: dict[str, Buffer]
    binding: ort.IOBinding
    options: ort.RunOptions

    def close(self) -> None:
        """Free the memory; no run may follow."""
        for buffer in (self.input, *self.outputs.values()):
            buffer.close()


@dataclass(frozen=True, slots=True)
class ThreadState:
    """One thread's stream for copies, and its buckets by their rows."""

    copy_stream: Stream
    buckets: dict[int, Bucket] = field(default_factory=dict)

    def close(self) -> None:
        """Free everything."""
        for bucket in self.buckets.values():
            bucket.close()
        self.buckets.clear()
        self.copy_stream.close()


class ThreadBuckets:
    """The state of each thread, created on the thread's first run.

    build_bucket: makes a bucket of so many rows, for a thread that copies on this stream; called
    while no other thread uses the device.
    """

    def __init__(self, device: Device, build_bucket: Callable[[int, Stream], Bucket]) -> None:
        self._device, self._build_bucket = device, build_bucket
        self._states: dict[threading.Thread, ThreadState] = {}

    def __iter__(self) -> Iterator[ThreadState]:
        """The current states."""
        return iter(list(self._states.values()))

    def bucket(self, rows: int) -> tuple[Bucket, Stream]:
        """This thread's bucket of so many rows, built if it is missing, and its stream."""
        thread = threading.current_thread()
        state = self._states.get(thread)
        if state is None or rows not in state.buckets:
            with CUDA_CAPTURE.exclusive():
                if state is None:
                    state = self._states[thread] = ThreadState(self._device.create_stream())
                state.buckets[rows] = self._build_bucket(rows, state.copy_stream)
        return state.buckets[rows], state.copy_stream

    def warm_up(self, max_rows: int) -> None:
        """Build this thread's buckets of up to so many rows. Raises what `build_bucket` raises."""
        for rows in bucket_sizes(max_rows):
            self.bucket(rows)

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
