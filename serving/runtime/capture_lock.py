"""Who may touch the GPU when: everybody together, but nobody beside a recording.

While a CUDA graph is recorded, no thread of the process may copy, allocate, free or wait on the
device: CUDA fails that call and the recording with it. (ONNX Runtime records in
cudaStreamCaptureModeGlobal, "for now cuda graph can only work with a single thread": its
cuda_graph.cc.) Encoder and decoder have threads of their own, and new versions are loaded while
others serve, so they agree on it here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final


class CaptureLock:
    """Any number of uses at a time, or one recording. Who waits to record goes first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._uses = 0
        self._recordings = 0  # under way or waited for

    @contextmanager
    def use(self) -> Iterator[None]:
        """While nothing is recorded. Not to be nested: a recording between would wait for ever."""
        with self._changed:
            while self._recordings:
                self._changed.wait()
            self._uses += 1
        try:
            yield
        finally:
            with self._changed:
                self._uses -= 1
                if self._recordings:
                    self._changed.notify_all()

    @contextmanager
    def record(self) -> Iterator[None]:
        """Alone."""
        with self._changed:
            self._recordings += 1
            while self._uses:
                self._changed.wait()
            self._uses = 1
        try:
            yield
        finally:
            with self._changed:
                self._uses = 0
                self._recordings -= 1
                self._changed.notify_all()


GPU: Final = CaptureLock()
"""One for the process, as CUDA's rule is."""
