"""A graph on a GPU: batches of few sizes, each with memory that stays where it is.

A GPU is asked for the same thing again and again at its best: a new shape means new kernels to
choose and new memory to find, and a recorded CUDA graph holds for one shape and one place only. So
each batch is padded to the next power of two, its bucket, whose buffers are made once: one on the
device for the input and one for each output, and one beside each in page-locked memory, from which
the device copies by itself. A graph computes all of its outputs, whichever are asked for; only
those are copied.

A run is asked for in one breath: rows up, the graph, rows down, each on the device's own order to
follow the one before; the host waits once. Each thread that runs a graph has buckets and a stream
for its copies of its own, so that one copies while another's batch is computed. (ONNX Runtime, too,
keeps what it recorded for each thread.)
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from serving.runtime.gpu import GPU

Array = NDArray[Any]
Row = tuple[str, tuple[int, ...]]
"""dtype and shape of one row."""

WARM_UPS: Final = 3
"""Runs after which a bucket is as quick as it gets: one finds memory, one records, one replays."""


class Memory(Protocol):
    """Bytes at an address."""

    address: int

    def close(self) -> None:
        """Give them back."""


class Stream(Protocol):
    """An order in which a device does what it is asked for: as cuda.Stream."""

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
    """Where batches are computed. name: ONNX Runtime's."""

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
        self.there, self.here = device.memory(nbytes)
        bytes_here = memoryview((ctypes.c_ubyte * nbytes).from_address(self.here.address))
        self.rows: Array = np.ndarray(self.shape, self.kind, bytes_here)
        self.rows[...] = 0

    def upload(self, rows: int, stream: Stream) -> None:
        """Have the first rows copied to the device; what follows is what was there before."""
        stream.copy(self.there.address, self.here.address, rows * self._row_bytes)

    def download(self, rows: int, stream: Stream) -> None:
        """Have the first rows copied back."""
        stream.copy(self.here.address, self.there.address, rows * self._row_bytes)

    def close(self) -> None:
        """Give the memory back; no run may follow."""
        del self.rows
        self.there.close()
        self.here.close()


@dataclass(frozen=True, slots=True)
class Bucket:
    """One size of batch."""

    input: Buffer
    outputs: dict[str, Buffer]
    binding: ort.IOBinding
    options: ort.RunOptions

    def close(self) -> None:
        """Give the memory back; no run may follow."""
        for buffer in (self.input, *self.outputs.values()):
            buffer.close()


@dataclass(frozen=True, slots=True)
class Hand:
    """What one thread runs a graph with: a stream for its copies, and its buckets."""

    copies: Stream
    buckets: dict[int, Bucket] = field(default_factory=dict)  # by rows

    def close(self) -> None:
        """Give all of it back; no run may follow."""
        for bucket in self.buckets.values():
            bucket.close()
        self.buckets.clear()
        self.copies.close()


class BoundGraph:
    """One ONNX graph whose batches are padded to powers of two.

    session: computes on `stream`, where `device` has streams
    takes, gives: name -> dtype and shape of a row
    cuda_graph: the session records the runs of each bucket and replays them
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        takes: tuple[str, Row],
        gives: dict[str, Row],
        device: Device,
        stream: Stream,
        cuda_graph: bool,
    ) -> None:
        self._session, self._takes, self._gives = session, takes, gives
        self._device, self._stream, self._cuda_graph = device, stream, cuda_graph
        self._hands: dict[threading.Thread, Hand] = {}
        self._numbers = itertools.count(1)
        self._one_at_a_time = threading.Lock()  # all threads' runs share the stream's order

    def sizes(self, most_rows: int) -> list[int]:
        """The buckets of batches of up to so many rows: 1, 2, 4, ..."""
        return [1 << power for power in range(bucket_rows(most_rows).bit_length())]

    def run(self, array: Array, outputs: Sequence[str]) -> list[Array]:
        """Run one batch; `array` has shape (rows, ...). The answers are the caller's own."""
        rows = len(array)
        hand, bucket = self._bucket(bucket_rows(rows))
        wanted = [bucket.outputs[output] for output in outputs]
        with GPU.use():
            bucket.input.rows[:rows] = array
            bucket.input.upload(rows, hand.copies)
            self._compute(hand, bucket)
            for buffer in wanted:
                buffer.download(rows, hand.copies)
            hand.copies.wait()
        return [buffer.rows[:rows].copy() for buffer in wanted]

    def warm_up(self, most_rows: int) -> None:
        """Make this thread's buckets of up to so many rows. Raises what the runtime raises."""
        for rows in self.sizes(most_rows):
            self._bucket(rows)

    def leave(self) -> None:
        """Give back this thread's buckets: it is not going to run the graph again."""
        with GPU.use():
            hand = self._hands.pop(threading.current_thread(), None)
            if hand:
                hand.close()

    def close(self) -> None:
        """Give the memory back now, whoever still holds the graph; no run may follow."""
        with GPU.use(), self._one_at_a_time:
            while self._hands:
                self._hands.popitem()[1].close()
            del self._session
            self._stream.close()

    def _compute(self, hand: Hand, bucket: Bucket) -> None:
        """Have the device run the graph between this thread's copies up and down."""
        with self._one_at_a_time:
            self._stream.follow(hand.copies)
            self._session.run_with_iobinding(bucket.binding, bucket.options)
            hand.copies.follow(self._stream)

    def _bucket(self, rows: int) -> tuple[Hand, Bucket]:
        me = threading.current_thread()
        hand = self._hands.get(me)
        if hand is None or rows not in hand.buckets:
            with GPU.record():
                if hand is None:
                    hand = self._hands[me] = Hand(self._device.stream())
                hand.buckets[rows] = self._made(rows, hand)
        return hand, hand.buckets[rows]

    def _made(self, rows: int, hand: Hand) -> Bucket:
        """A bucket that has run, on zeros, until it was recorded and replayed."""
        with ExitStack() as undo:

            def buffer(row: Row) -> Buffer:
                return undo.enter_context(closing(Buffer(rows, row, self._device)))

            name, takes = self._takes[0], buffer(self._takes[1])
            gives = {output: buffer(row) for output, row in self._gives.items()}
            binding, place = self._session.io_binding(), self._device.name
            binding.bind_input(name, place, 0, takes.kind, takes.shape, takes.there.address)
            for output, b in gives.items():
                binding.bind_output(output, place, 0, b.kind, b.shape, b.there.address)
            bucket = Bucket(takes, gives, binding, self._options())
            takes.upload(rows, hand.copies)
            for _ in range(WARM_UPS):
                self._compute(hand, bucket)
                hand.copies.wait()
            undo.pop_all()
        return bucket

    def _options(self) -> ort.RunOptions:
        options = ort.RunOptions()
        # The session's stream says when a run is over, and the copies that follow it wait for that.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._cuda_graph:  # every bucket's recording has a number of its own
            options.add_run_config_entry("gpu_graph_id", str(next(self._numbers)))
        return options


def bucket_rows(rows: int) -> int:
    """The least power of two that holds so many rows."""
    return 1 << max(0, rows - 1).bit_length()
