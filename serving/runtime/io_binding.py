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

import itertools
import threading
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Final

import onnxruntime as ort

from latentd.runtime.buffers import Array, Buffer, Device, Row, Stream
from latentd.runtime.capture_lock import GPU
from latentd.runtime.thread_buckets import Bucket, ThreadBuckets, bucket_rows, sizes

WARM_UPS: Final = 3
"""Runs after which a bucket is as quick as it gets: one finds memory, one records, one replays."""


class IOBindingGraph:
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
        self._hands = ThreadBuckets(device, self._made)
        self._numbers = itertools.count(1)
        self._one_at_a_time = threading.Lock()  # all threads' runs share the stream's order

    def sizes(self, most_rows: int) -> list[int]:
        """As Graph.sizes."""
        return sizes(most_rows)

    def run(self, array: Array, outputs: Sequence[str]) -> list[Array]:
        """Run one batch; `array` has shape (rows, ...). The answers are the caller's own."""
        bucket, copies = self._hands.bucket(bucket_rows(len(array)))
        gives, rows = [bucket.outputs[output] for output in outputs], len(array)
        with GPU.use():
            bucket.input.rows[:rows] = array
            bucket.input.upload(rows, copies)
            self._compute(bucket, copies)
            for buffer in gives:
                buffer.download(rows, copies)
            copies.wait()
        return [buffer.rows[:rows].copy() for buffer in gives]

    def warm_up(self, most_rows: int) -> None:
        """Make this thread's buckets of up to so many rows. Raises what the runtime raises."""
        self._hands.warm_up(most_rows)

    def leave(self) -> None:
        """Give back this thread's buckets: it is not going to run the graph again."""
        self._hands.leave()

    def close(self) -> None:
        """Give the memory back now, whoever still holds the graph; no run may follow."""
        with GPU.use(), self._one_at_a_time:
            self._hands.close()
            del self._session
            self._stream.close()

    def _made(self, rows: int, copies: Stream) -> Bucket:
        """A bucket that has run on zeros until it was recorded and replayed; while GPU.record() is
        held. Raises what the runtime raises, and CudaError."""
        with ExitStack() as undo:

            def buffer(row: Row) -> Buffer:
                return undo.enter_context(closing(Buffer(rows, row, self._device)))

            name, row = self._takes
            takes = buffer(row)
            takes.upload(rows, copies)
            gives = {output: buffer(row) for output, row in self._gives.items()}
            binding, place = self._session.io_binding(), self._device.name
            binding.bind_input(name, place, 0, takes.kind, takes.shape, takes.there.address)
            for output, b in gives.items():
                binding.bind_output(output, place, 0, b.kind, b.shape, b.there.address)
            bucket = Bucket(takes, gives, binding, self._options())
            for _ in range(WARM_UPS):
                self._compute(bucket, copies)
                copies.wait()
            undo.pop_all()
        return bucket

    def _compute(self, bucket: Bucket, copies: Stream) -> None:
        """Have the device run the graph after what `copies` was asked for until now and before what
        it will be; while GPU.use() is held."""
        with self._one_at_a_time:
            self._stream.follow(copies)
            self._session.run_with_iobinding(bucket.binding, bucket.options)
            copies.follow(self._stream)

    def _options(self) -> ort.RunOptions:
        options = ort.RunOptions()
        # The session's stream says when a run is over, and the copies that follow it wait for that.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._cuda_graph:  # every bucket's recording has a number of its own
            options.add_run_config_entry("gpu_graph_id", str(next(self._numbers)))
        return options
