"""Ctrl-C and SIGTERM stop a run between two steps, so that its checkpoint has every step. Other
commands they stop at once, but what is temporary is removed."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal asked to stop, or the time was over. A run has saved its checkpoint."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopRequest:
    """The signal that asked the run to stop, if one did. SIGALRM says that the time was over."""

    def __init__(self, seconds: float = math.inf) -> None:
        self._signal: int | None = None
        self._end = time.monotonic() + seconds

    @property
    def number(self) -> int | None:
        """The first signal, or None."""
        if self._signal is None and time.monotonic() >= self._end:
            self._signal = signal.SIGALRM
        return self._signal

    def make(self, number: int) -> None:
        """Ask to stop for this signal."""
        self._signal = number

    def raise_if_made(self) -> None:
        """Raise Stopped if a signal has come."""
        if (number := self.number) is not None:
            raise Stopped(number)


@contextlib.contextmanager
def stop_request(seconds: float = math.inf) -> Iterator[StopRequest]:
    """Inside the block, the first signal only makes the request. The second one acts at once. The
    request is also made when `seconds` have passed.

    An exception that Python raises for a signal may come in the middle of a library's work: in
    a put into TensorBoard's queue it leaves that library waiting forever, in a finalizer it is
    lost. A request does neither. A signal that is ignored stays ignored. Outside the main thread,
    where Python has no signals, the request is never made.
    """
    request = StopRequest(seconds)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {
        number: handler
        for number in _SIGNALS
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(number: int, frame: FrameType | None) -> None:
        request.make(number)
        restore()

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield request
    finally:
        restore()
    request.raise_if_made()  # it came after the last question


@contextlib.contextmanager
def raising_sigterm() -> Iterator[None]:
    """Inside the block, the first SIGTERM raises Stopped, so that temporary files are removed. The
    second one acts at once. A SIGTERM that is ignored stays ignored."""
    before = signal.getsignal(signal.SIGTERM)
    main = threading.current_thread() is threading.main_thread()
    if not main or before in (signal.SIG_IGN, None):
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)
        raise Stopped(number)

    signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
