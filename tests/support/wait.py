"""Waits for futures in tests that have threads and no coroutines."""

from __future__ import annotations

import threading
from typing import TypeVar

from latentd.calls.coroutines import Future

T = TypeVar("T")
LONG = 120.0  # seconds; only broken code makes a test wait so long


def result_of(future: Future[T]) -> T:
    """Wait for a future; returns its result or raises its exception."""
    done = threading.Event()
    if future.add_done_callback(done.set):
        assert done.wait(LONG)
    try:
        next(future.__await__())
    except StopIteration as result:
        value: T = result.value
        return value
    raise AssertionError("a done future blocked")
