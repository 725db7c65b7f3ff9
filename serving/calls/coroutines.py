"""Runs each call as a coroutine, without an event loop.

A method of the service is straight-line `async def` code. No event loop runs it: a loop, its tasks
and its wake-ups across threads cost several times what a call itself costs. `run_coroutine` runs
the coroutine in the thread that received the call, until it awaits a Future that is not done. The
thread that sets the Future's result, most often a batcher's, then resumes the coroutine.

**Code after an `await` may run in another thread than the code before it.** So a coroutine keeps no
thread-local state, holds no lock across an `await`, and never blocks. serving/README.md, "How a
call runs", shows the path of a call and lists every thread.

The names are those of asyncio and concurrent.futures.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Cancelled(BaseException):
    """The client has cancelled the call or disconnected. Not an Exception, as asyncio's
    CancelledError is not: only code that cleans up should catch it."""


class Future(Generic[T]):
    """A result to come. Any thread may set it, and any thread may await it. The first result or
    exception counts; later ones are ignored."""

    __slots__ = ("_callback", "_done", "_error", "_lock", "_on_cancel", "_value")

    def __init__(self, on_cancel: Callable[[], None] | None = None) -> None:
        """on_cancel: called when the future fails with Cancelled."""
        self._on_cancel = on_cancel
        self._lock = threading.Lock()
        self._done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._callback: Callable[[], None] | None = None

    def set_result(self, value: T) -> None:
        """Set the result. The coroutine that awaits it continues in this thread, before this method
        returns."""
        self._finish(value, None)

    def set_exception(self, error: BaseException) -> None:
        """Set an exception, which `await` raises. The coroutine continues as in `set_result`."""
        self._finish(None, error)

    def done(self) -> bool:
        """Whether there is a result or an exception."""
        return self._done

    def add_done_callback(self, callback: Callable[[], None]) -> bool:
        """Call `callback`, without arguments, once there is a result or an exception.

        There is room for one callback. Unlike asyncio's, a future that is done already returns
        False and does not call it.
        """
        with self._lock:
            if self._done:
                return False
            self._callback = callback
            return True

    def __await__(self) -> Generator[Future[T], None, T]:
        if not self._done:
            yield self
        if self._error is not None:
            try:
                raise self._error
            finally:
                # The error's traceback refers to this frame. With the future in the frame they
                # would be a cycle, and the call's memory would wait for the garbage collector.
                del self
        return self._value  # type: ignore[return-value]

    def _finish(self, value: T | None, error: BaseException | None) -> None:
        with self._lock:
            if self._done:
                return
            self._value, self._error, self._done = value, error, True
            callback, self._callback = self._callback, None
        if self._on_cancel is not None and isinstance(error, Cancelled):
            self._on_cancel()
        if callback is not None:
            callback()


def run_coroutine(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in this thread until it ends or awaits a future that is not done. The thread
    that sets that future's result runs it on."""
    _Task(coroutine).step()


def create_task(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Start another coroutine in this thread; the future is what it returns or raises."""
    future: Future[T] = Future()

    async def run() -> None:
        try:
            result = await coroutine
        except BaseException as error:  # Cancelled, too, is for the code that awaits the future
            future.set_exception(error)
        else:
            future.set_result(result)

    run_coroutine(run())
    return future


class _Task:
    __slots__ = ("_coroutine",)

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._coroutine = coroutine

    def step(self) -> None:
        try:
            while True:
                future: Future[Any] = self._coroutine.send(None)
                if future.add_done_callback(self.step):
                    return
        except StopIteration:
            pass
        except BaseException:  # it must not end the thread that happened to resume the call
            log.exception("Unhandled exception in a call.")


_executor: Final = ThreadPoolExecutor(thread_name_prefix="offload")
_long_executor: Final = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="long-offload")


def run_in_executor(function: Callable[..., T], *args: Any) -> Future[T]:
    """Run `function` in the thread pool: for work of milliseconds that no batcher does, so that no
    other call waits for it. The coroutine that awaits the future continues in the pool's thread."""
    return _submit(_executor, function, args)


def run_long_in_executor(function: Callable[..., T], *args: Any) -> Future[T]:
    """As run_in_executor, in a pool of its own: for work of seconds, for which that of milliseconds
    must not wait."""
    return _submit(_long_executor, function, args)


def _submit(
    executor: ThreadPoolExecutor, function: Callable[..., T], args: tuple[Any, ...]
) -> Future[T]:
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = function(*args)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    executor.submit(run)
    return future
