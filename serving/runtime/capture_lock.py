"""A readers-writer lock for the GPU: any number of threads use it, or one captures a CUDA graph.

While one thread captures a CUDA graph, no other thread of the process may copy, allocate, free or
wait on the device: CUDA fails that call and the capture. (ONNX Runtime captures in
cudaStreamCaptureModeGlobal, "for now cuda graph can only work with a single thread": its
cuda_graph.cc.) Encoder and decoder have threads of their own, and new versions are loaded while
others serve, so all of them take this lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final


class CaptureLock:
    """Held by any number of threads as `shared`, or by one as `exclusive`. A thread that waits for
    `exclusive` goes before later `shared` ones."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holders = 0  # threads that hold the lock, shared or exclusive
        self._exclusive = 0  # threads that hold it as exclusive, or wait for it

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Use the device. Must not be nested: with an exclusive request in between, the inner one
        would wait forever."""
        with self._changed:
            while self._exclusive:
                self._changed.wait()
            self._holders += 1
        try:
            yield
        finally:
            with self._changed:
                self._holders -= 1
                if self._exclusive:
                    self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Capture a CUDA graph, while no other thread uses the device."""
        with self._changed:
            self._exclusive += 1
            while self._holders:
                self._changed.wait()
            self._holders = 1
        try:
            yield
        finally:
            with self._changed:
                self._holders = 0
                self._exclusive -= 1
                self._changed.notify_all()


CUDA_CAPTURE: Final = CaptureLock()
"""One for the process, as CUDA's rule is."""
