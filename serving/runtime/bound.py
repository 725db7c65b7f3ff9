"""A graph on a GPU: batches of few sizes, each with memory that stays where it is.

A GPU is asked for the same thing again and again at its best: a new shape means new kernels to
choose and new memory to find, and a recorded CUDA graph holds for one shape and one place only. So
each batch is padded to the next power of two, its bucket, whose buffers are made once: one on the
device for the input and one for each output, and one beside each in page-locked memory, from which
the device copies by itself.

Each thread that runs a graph has buckets of its own, so that one can fill its own while another's
run: what is copied for the next batch costs the device no time. (ONNX Runtime, too, keeps what it
recorded for each thread.)

On the CPU provider both buffers are one and the same and nothing is copied. That is how the tests
without a GPU run this; serving does not, for there padding costs and gains nothing.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from serving.runtime.gpu import GPU

Array = NDArray[Any]
Row = tuple[str, tuple[int, ...]]
"""dtype and shape of one row."""

WARM_UPS: Final = 3
"""Runs after which a bucket is as quick as it gets: one finds memory, one records, one replays."""


class Buffer:
    """Rows on the device, and the same rows where this process can reach them."""

    def __init__(self, rows: int, row: Row, device: str) -> None:
        dtype, shape = row
        whole, kind = (rows, *shape), np.dtype(dtype)
        self.device = ort.OrtValue.ortvalue_from_shape_and_type(whole, kind, device)
        self._host = self.device if device == "cpu" else _page_locked(whole, kind)
        self._rows: Array = self._host.numpy()  # a view
        self._rows[...] = 0
        self._both_ways = self._host is not self.device and _copies(self.device, self._host)

    def upload(self, array: Array) -> None:
        """Put rows at the beginning; what follows is what was there before."""
        self._rows[: len(array)] = array
        if self._host is not self.device:
            self.device.update_inplace(self._rows)

    def download(self, rows: int) -> Array:
        """The first rows; the caller's own."""
        if self._host is self.device:
            return self._rows[:rows].copy()
        if self._both_ways:
            self._host.update_inplace(self.device)
            return self._rows[:rows].copy()
        copied: Array = self.device.numpy()
        return copied[:rows]


@dataclass(frozen=True, slots=True)
class Bucket:
    """One size of batch for one set of outputs."""

    input: Buffer
    outputs: list[Buffer]
    binding: ort.IOBinding
    options: ort.RunOptions


class BoundGraph:
    """One ONNX graph whose batches are padded to powers of two.

    takes, gives: name -> dtype and shape of a row. device: "cuda", or "cpu" for tests.
    cuda_graph: the session records the runs of each bucket and replays them.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        takes: tuple[str, Row],
        gives: dict[str, Row],
        device: str,
        cuda_graph: bool,
    ) -> None:
        self._session, self._takes, self._gives = session, takes, gives
        self._device, self._cuda_graph = device, cuda_graph
        self._buckets: dict[tuple[threading.Thread, int, tuple[str, ...]], Bucket] = {}
        self._seen: set[tuple[int, tuple[str, ...]]] = set()  # by any thread
        self._numbers = itertools.count(1)
        self._one_at_a_time = threading.Lock()  # all threads' runs share the device's work space

    def sizes(self, most_rows: int) -> list[int]:
        """The buckets of batches of up to so many rows: 1, 2, 4, ..."""
        return [1 << power for power in range(bucket_rows(most_rows).bit_length())]

    def run(self, array: Array, outputs: Sequence[str]) -> list[Array]:
        """Run one batch; `array` has shape (rows, ...). The answers are the caller's own."""
        rows = len(array)
        bucket = self._bucket(bucket_rows(rows), tuple(outputs))
        with GPU.use():
            bucket.input.upload(array)
            self.step(bucket)
            return [buffer.download(rows) for buffer in bucket.outputs]

    def warm_up(self, most_rows: int) -> None:
        """Make this thread's buckets of up to so many rows: for all outputs, and for those that
        any thread has asked for. Raises what the runtime raises."""
        wanted = {(rows, tuple(self._gives)) for rows in self.sizes(most_rows)}
        wanted |= {(rows, outputs) for rows, outputs in list(self._seen) if rows <= max(wanted)[0]}
        for rows, outputs in sorted(wanted):
            self._bucket(rows, outputs)

    def leave(self) -> None:
        """Give back this thread's buckets: it is not going to run the graph again."""
        give_back(self._buckets)

    def close(self) -> None:
        """Give the memory back now, whoever still holds the graph; no run may follow."""
        with GPU.use(), self._one_at_a_time:
            self._buckets.clear()
            del self._session

    # For a chain, which has buckets of its own.

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of all that the graph gives."""
        return tuple(self._gives)

    def make(self, rows: int, outputs: Sequence[str], takes: Buffer | None = None) -> Bucket:
        """A bucket that has run until it was recorded and replayed; while GPU.record() is held.

        takes: the buffer that is to be its input, and what it has run on; else one of its own, with
        zeros. Raises what the runtime raises.
        """
        name, row = self._takes
        if takes is None:
            takes = Buffer(rows, row, self._device)
            takes.upload(np.zeros((rows, *row[1]), row[0]))
        gives = [Buffer(rows, self._gives[output], self._device) for output in outputs]
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(name, takes.device)
        for output, buffer in zip(outputs, gives, strict=True):
            binding.bind_ortvalue_output(output, buffer.device)
        options = ort.RunOptions()
        if self._cuda_graph:  # every bucket's recording has a number of its own
            options.add_run_config_entry("gpu_graph_id", str(next(self._numbers)))
        for _ in range(WARM_UPS):
            self._session.run_with_iobinding(binding, options)
        return Bucket(takes, gives, binding, options)

    def step(self, bucket: Bucket) -> None:
        """Run what lies in the bucket's input, and return when the device has done so; while
        GPU.use() is held."""
        with self._one_at_a_time:
            self._session.run_with_iobinding(bucket.binding, bucket.options)

    def _bucket(self, rows: int, outputs: tuple[str, ...]) -> Bucket:
        key = threading.current_thread(), rows, outputs
        if key not in self._buckets:
            with GPU.record():
                self._buckets[key] = self.make(rows, outputs)
            self._seen.add((rows, outputs))
        return self._buckets[key]


def give_back(made: dict[Any, Any]) -> None:
    """Drop what this thread has made, of that under whose keys the thread stands first."""
    me = threading.current_thread()
    with GPU.use():
        for key in list(made):
            if key[0] is me:
                del made[key]


def bucket_rows(rows: int) -> int:
    """The least power of two that holds so many rows."""
    return 1 << max(0, rows - 1).bit_length()


def _page_locked(shape: tuple[int, ...], kind: np.dtype[Any]) -> ort.OrtValue:
    """Host memory that the device copies from and to by itself, or, where the runtime offers none,
    ordinary memory, which it copies by way of its own."""
    for device in ort.get_ep_devices():
        if device.ep_name == "CUDAExecutionProvider":
            memory = device.memory_info(ort.OrtDeviceMemoryType.HOST_ACCESSIBLE)
            if memory is not None:
                return ort.OrtValue.ortvalue_from_shape_and_type(shape, kind, memory_info=memory)
    return ort.OrtValue.ortvalue_from_shape_and_type(shape, kind)


def _copies(source: ort.OrtValue, target: ort.OrtValue) -> bool:
    """Whether the runtime copies from the device into memory that is there already."""
    try:
        target.update_inplace(source)
    except Exception:  # the runtime has no common base for what it raises
        return False
    return True
