"""Calls as coroutines that are resumed by whoever has their answer.

A method of the service is straight-line `async def` code, but no event loop runs it: loops, their
tasks and their wake-ups across threads cost several times what a call itself does. `start` runs a
coroutine in the thread that received the call until it waits for a Reply; the thread that resolves
the Reply, a lane's most often, runs it on from there.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Generic, TypeVar

from latentd.calls.stats import CallStats

log = logging.getLogger(__name__)

T = TypeVar("T")


class Cancelled(BaseException):
    """The caller has gone. No Exception: only what cleans up should see it."""


class Future(Generic[T]):
    """An answer to come, from any thread to any thread. The first answer counts."""

    __slots__ = ("_done", "_error", "_lock", "_on_cancel", "_resume", "_value")

    def __init__(self, on_cancel: Callable[[], None] | None = None) -> None:
        """on_cancel: called when the reply fails because its caller has gone."""
        self._on_cancel = on_cancel
        self._lock = threading.Lock()
        self._done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._resume: Callable[[], None] | None = None

    def set_result(self, value: T) -> None:
        """Answer; runs on here and now whoever waits."""
        self._finish(value, None)

    def set_exception(self, error: BaseException) -> None:
        """Answer with an error, raised in whoever waits."""
        self._finish(None, error)

    @property
    def done(self) -> bool:
        """Whether there is an answer."""
        return self._done

    def then(self, resume: Callable[[], None]) -> bool:
        """Call `resume` once there is an answer; False: there is one already, go on yourself."""
        with self._lock:
            if self._done:
                return False
            self._resume = resume
            return True

    def __await__(self) -> Generator[Future[T], None, T]:
        if not self._done:
            yield self
        if self._error is not None:
            try:
                raise self._error
            finally:
                # The error's traceback holds this frame: with the reply in it they were a cycle,
                # and all that the call held would wait for the garbage collector.
                del self
        return self._value  # type: ignore[return-value]

    def _finish(self, value: T | None, error: BaseException | None) -> None:
        with self._lock:
            if self._done:
                return
            self._value, self._error, self._done = value, error, True
            resume, self._resume = self._resume, None
        if self._on_cancel is not None and isinstance(error, Cancelled):
            self._on_cancel()
        if resume is not None:
            resume()


class CallContext:
    """Who asks: by when, how urgently, and whether still.

    deadline:   seconds on time.monotonic's clock; math.inf: none
    background: lets others go first
    authorization: the header of that name, "" where there is none
    scopes:     of its token; None: the server asks for no tokens
    header_bytes: all headers of the call together
    account:    what the call costs
    """

    __slots__ = (
        "_on_done",
        "_pending",
        "authorization",
        "background",
        "cancelled",
        "deadline",
        "header_bytes",
        "scopes",
        "stats",
    )

    def __init__(self, deadline: float = math.inf, background: bool = False) -> None:
        self.deadline, self.background = deadline, background
        self.authorization = ""
        self.scopes: frozenset[str] | None = None
        self.stats = CallStats()
        self.header_bytes = 0
        self.cancelled = False
        self._pending: set[Future[Any]] = set()
        self._on_done: Callable[[], None] | None = None

    def on_cancel(self, reply: Future[Any]) -> None:
        """Fail `reply` with Cancelled when the caller goes; at once if that has happened."""
        for earlier in list(self._pending):
            if earlier.done:  # a stream makes no end of them, each with the rows it brought
                self._pending.discard(earlier)
        self._pending.add(reply)
        if self.cancelled:
            reply.set_exception(Cancelled())

    def cancel(self) -> None:
        """The caller has gone: nothing that waits for it need be done."""
        self.cancelled = True
        for reply in list(self._pending):
            reply.set_exception(Cancelled())

    def on_done(self, act: Callable[[], None]) -> None:
        """Call `act` when the call has ended, however. There is room for one."""
        self._on_done = act

    def done(self) -> None:
        """The call has ended: what it still waits for need not be done either."""
        for reply in list(self._pending):
            reply.set_exception(Cancelled())
        self._pending = set()
        act, self._on_done = self._on_done, None
        if act is not None:
            act()


def run_coroutine(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine as far as it goes now; what it waits for runs it on."""
    _Run(coroutine).step()


def create_task(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Start a coroutine beside this one; the reply is what it returns or raises."""
    reply: Future[T] = Future()

    async def run() -> None:
        try:
            result = await coroutine
        except BaseException as error:  # Cancelled, too, is for who waits
            reply.set_exception(error)
        else:
            reply.set_result(result)

    run_coroutine(run())
    return reply


class _Run:
    __slots__ = ("_coroutine",)

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._coroutine = coroutine

    def step(self) -> None:
        try:
            while True:
                reply: Future[Any] = self._coroutine.send(None)
                if reply.then(self.step):
                    return
        except StopIteration:
            pass
        except BaseException:  # it must not end the thread that happened to resume it
            log.exception("A call ended by an error that nothing caught.")


_pool: Final = ThreadPoolExecutor(thread_name_prefix="offload")


def run_in_executor(work: Callable[..., T], *args: Any) -> Future[T]:
    """Do what takes milliseconds and no lane in a thread of its own, so that no call waits."""
    reply: Future[T] = Future()

    def run() -> None:
        try:
            result = work(*args)
        except BaseException as error:
            reply.set_exception(error)
        else:
            reply.set_result(result)

    _pool.submit(run)
    return reply
