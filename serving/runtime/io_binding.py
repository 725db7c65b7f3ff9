"""A graph on a GPU: batches of a few fixed sizes, each bound to memory at fixed addresses.

A GPU is fastest when it repeats the same work: a new shape means new kernels to choose and new
memory to allocate, and a captured CUDA graph holds for one shape at one address. So each batch is
padded to the next power of two, its bucket, whose buffers are allocated once. A bucket has one
buffer on the device for the input and one for each output. For each of these it has one in
page-locked host memory, from which the device itself can copy. A graph computes all of its outputs
in every run; only the requested ones are copied to the host.

A run queues everything at once: copies to the device, the graph, copies back. Each waits on the
device for the one before, and the host waits once, at the end. Each thread that runs a graph has
its own buckets and its own stream for copies, so that one thread copies while another's batch is
computed. (ONNX Runtime, too, keeps its captured CUDA graphs for each thread.)
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any, Final

import onnxruntime as ort
from numpy.typing import NDArray

from latentd.runtime.buffers import Buffer, Device, RowSpec, Stream
from latentd.runtime.capture_lock import CUDA_CAPTURE
from latentd.runtime.signature import Signature
from latentd.runtime.thread_buckets import Bucket, ThreadBuckets, bucket_rows, bucket_sizes

WARM_UP_RUNS: Final = 3
"""Runs until a bucket has its final speed: one allocates memory, one captures, one replays."""


class IOBindingGraph:
    """One ONNX graph whose batches are padded to powers of two.

    session: computes on `stream`, if `device` has streams
    cuda_graph: the session captures the runs of each bucket and replays them
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        signature: Signature,
        device: Device,
        stream: Stream,
        cuda_graph: bool,
    ) -> None:
        self._session, self._signature = session, signature
        self._device, self._stream, self._cuda_graph = device, stream, cuda_graph
        self._thread_buckets = ThreadBuckets(device, self._build_bucket)
        self._graph_ids = itertools.count(1)
        self._run_lock = threading.Lock()  # all threads queue their runs in one stream

    def batch_sizes(self, max_rows: int) -> list[int]:
        """As Graph.batch_sizes."""
        return bucket_sizes(max_rows)

    def run(self, array: NDArray[Any], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Run one batch; `array` has shape (rows, ...). The results are copies."""
        bucket, copies = self._thread_buckets.bucket(bucket_rows(len(array)), array.shape[1:])
        requested, rows = [bucket.outputs[output] for output in outputs], len(array)
        with CUDA_CAPTURE.shared():
            bucket.input.rows[:rows] = array
            bucket.input.upload(rows, copies)
            self._queue_run(bucket, copies)
            for buffer in requested:
                buffer.download(rows, copies)
            copies.synchronize()
        return [buffer.rows[:rows].copy() for buffer in requested]

    def warm_up(self, max_rows: int) -> None:
        """Build this thread's buckets of up to so many rows, of a graph whose other lengths are
        fixed. Raises what the runtime raises."""
        _, _, shape = self._signature.input
        self._thread_buckets.warm_up(max_rows, shape.at({}))

    def release_thread(self) -> None:
        """Free this thread's buckets: it will not run the graph again."""
        self._thread_buckets.release_thread()

    def close(self) -> None:
        """Free the memory now, even while the graph is referenced; no run may follow."""
        with CUDA_CAPTURE.shared(), self._run_lock:
            self._thread_buckets.close()
            del self._session
            self._stream.close()

    def _build_bucket(self, rows: int, lengths: tuple[int, ...], copies: Stream) -> Bucket:
        """A bucket that has run on zeros until it was captured and replayed. The caller holds
        CUDA_CAPTURE as exclusive. Raises what the runtime raises, and CudaError."""
        with ExitStack() as undo:

            def buffer(row: RowSpec) -> Buffer:
                return undo.enter_context(closing(Buffer(rows, row, self._device)))

            row, output_rows = self._signature.rows_at(lengths)
            input_buffer = buffer(row)
            input_buffer.upload(rows, copies)
            outputs = {output: buffer(row) for output, row in output_rows.items()}
            binding, device = self._session.io_binding(), self._device.name
            binding.bind_input(
                *(self._signature.input[0], device, 0, input_buffer.dtype, input_buffer.shape),
                input_buffer.device.address,
            )
            for output, b in outputs.items():
                binding.bind_output(output, device, 0, b.dtype, b.shape, b.device.address)
            bucket = Bucket(input_buffer, outputs, binding, self._run_options())
            for _ in range(WARM_UP_RUNS):
                self._queue_run(bucket, copies)
                copies.synchronize()
            undo.pop_all()
        return bucket

    def _queue_run(self, bucket: Bucket, copies: Stream) -> None:
        """Queue a run of the graph between the earlier and the later work of `copies`. The caller
        holds CUDA_CAPTURE."""
        with self._run_lock:
            self._stream.wait_stream(copies)
            self._session.run_with_iobinding(bucket.binding, bucket.options)
            copies.wait_stream(self._stream)

    def _run_options(self) -> ort.RunOptions:
        options = ort.RunOptions()
        # The copies back wait for the session's stream on the device: the host need not wait here.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._cuda_graph:  # each bucket's captured graph has an id of its own
            options.add_run_config_entry("gpu_graph_id", str(next(self._graph_ids)))
        return options
