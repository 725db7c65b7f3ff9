"""Replies for tests that have threads and no coroutines."""

from __future__ import annotations

import threading
from typing import TypeVar

from latentd.calls.coroutines import Future

T = TypeVar("T")
LONG = 20.0  # seconds; nothing here waits so long unless it is broken


def awaited(reply: Future[T]) -> T:
    """Wait for a reply, and return its value or raise what it failed with."""
    answered = threading.Event()
    if reply.then(answered.set):
        assert answered.wait(LONG)
    try:
        next(reply.__await__())
    except StopIteration as result:
        value: T = result.value
        return value
    raise AssertionError("an answered reply waited")
