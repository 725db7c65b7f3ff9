"""What each thread runs batches with: a stream for its copies, and a bucket for each size of batch,
which are the powers of two."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import onnxruntime as ort

from latentd.runtime.buffers import Buffer, Device, Stream
from latentd.runtime.capture_lock import GPU


@dataclass(frozen=True, slots=True)
class Bucket:
    """All that batches of one size need."""

    input: Buffer
    outputs: dict[str, Buffer]
    binding: ort.IOBinding
    options: ort.RunOptions

    def close(self) -> None:
        """Give the memory back; no run may follow."""
        for buffer in (self.input, *self.outputs.values()):
            buffer.close()


@dataclass(frozen=True, slots=True)
class ThreadState:
    """What one thread runs batches with: a stream for its copies, and its buckets by their rows."""

    copies: Stream
    buckets: dict[int, Bucket] = field(default_factory=dict)

    def close(self) -> None:
        """Give all of it back."""
        for bucket in self.buckets.values():
            bucket.close()
        self.buckets.clear()
        self.copies.close()


class ThreadBuckets:
    """Each thread's hand, made when it is first asked for.

    make: a bucket of so many rows, for a thread that copies on this stream; called while nobody
    else uses the device.
    """

    def __init__(self, device: Device, make: Callable[[int, Stream], Bucket]) -> None:
        self._device, self._make = device, make
        self._hands: dict[threading.Thread, ThreadState] = {}

    def __iter__(self) -> Iterator[ThreadState]:
        """Those that there are now."""
        return iter(list(self._hands.values()))

    def bucket(self, rows: int) -> tuple[Bucket, Stream]:
        """This thread's for batches of so many rows, made if there is none, and its stream."""
        me = threading.current_thread()
        hand = self._hands.get(me)
        if hand is None or rows not in hand.buckets:
            with GPU.record():
                if hand is None:
                    hand = self._hands[me] = ThreadState(self._device.stream())
                hand.buckets[rows] = self._make(rows, hand.copies)
        return hand.buckets[rows], hand.copies

    def warm_up(self, most_rows: int) -> None:
        """Make this thread's buckets of up to so many rows. Raises what making one raises."""
        for rows in sizes(most_rows):
            self.bucket(rows)

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
