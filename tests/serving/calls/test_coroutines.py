"""Futures have one result; a call continues in the thread that sets it, and ends when cancelled."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref

import pytest

from latentd.calls.context import CallContext
from latentd.calls.coroutines import Cancelled, Future, run_coroutine, run_in_executor
from tests.support.wait import LONG


def test_first_result_counts_and_the_callback_runs_once():
    future: Future[int] = Future()
    called: list[str] = []
    assert future.add_done_callback(lambda: called.append("called"))
    future.set_result(1)
    future.set_result(2)
    future.set_exception(ValueError("too late"))
    assert called == ["called"]
    got: list[int] = []

    async def read() -> None:
        got.append(await future)

    run_coroutine(read())
    assert got == [1]


def test_add_done_callback_returns_false_when_the_future_is_done():
    future: Future[int] = Future()
    future.set_result(1)
    assert not future.add_done_callback(lambda: None)


def test_call_continues_in_the_thread_that_sets_the_result():
    future: Future[str] = Future()
    threads: list[int | None] = []

    async def call() -> None:
        threads.append(threading.get_ident())
        await future
        threads.append(threading.get_ident())

    run_coroutine(call())
    other = threading.Thread(target=future.set_result, args=("now",))
    other.start()
    other.join()
    assert threads == [threading.get_ident(), other.ident]


def test_exception_is_raised_where_the_future_is_awaited():
    future: Future[int] = Future()
    caught: list[str] = []

    async def call() -> None:
        try:
            await future
        except ValueError as error:
            caught.append(str(error))

    run_coroutine(call())
    future.set_exception(ValueError("no"))
    assert caught == ["no"]


def test_unhandled_exception_is_logged_and_spares_the_thread(caplog):
    async def call() -> None:
        raise RuntimeError("a bug")

    run_coroutine(call())
    assert "a bug" in caplog.text


@pytest.mark.parametrize("when", ["before", "after"])
def test_cancel_fails_the_futures_of_the_call(when):
    context, cancelled = CallContext(), []
    future: Future[int] = Future(on_cancel=lambda: cancelled.append("cancelled"))
    if when == "before":
        context.cancel()
    context.on_cancel(future)
    context.cancel()
    ended: list[str] = []

    async def call() -> None:
        try:
            await future
        except Cancelled:
            ended.append("cancelled")

    run_coroutine(call())
    assert (cancelled, ended) == (["cancelled"], ["cancelled"])


def test_finish_cancels_only_futures_that_are_not_done():
    context, cancelled = CallContext(), []
    done: Future[int] = Future(on_cancel=lambda: cancelled.append("done"))
    pending: Future[int] = Future(on_cancel=lambda: cancelled.append("pending"))
    context.on_cancel(done)
    done.set_result(1)
    context.on_cancel(pending)
    context.finish()
    assert cancelled == ["pending"]


def test_future_that_another_thread_adds_meanwhile_is_cancelled_too():
    context, second = CallContext(), Future[None]()

    class Slow(Future[None]):
        asked = False

        def done(self) -> bool:  # another thread may run here
            if not Slow.asked:
                Slow.asked = True
                thread = threading.Thread(target=context.on_cancel, args=(second,))
                thread.start()
                thread.join()
            return super().done()

    context.on_cancel(Slow())
    context.on_cancel(Future())
    context.cancel()
    assert second.done()


def test_long_call_keeps_no_reference_to_earlier_results():
    class Rows:
        pass

    async def stream() -> None:
        for future in futures:
            context.on_cancel(future)
            await future
        context.on_cancel(Future())

    context, chunks = CallContext(), [Rows() for _ in range(3)]
    futures: list[Future[Rows]] = [Future() for _ in chunks]
    references = [weakref.ref(chunk) for chunk in chunks]
    for future, chunk in zip(futures, chunks, strict=True):
        future.set_result(chunk)
    run_coroutine(stream())
    del future, chunk, chunks[:], futures[:]
    assert [chunk() for chunk in references] == [None] * 3


class Failure(Exception):
    """An exception that weak references can point to."""


def test_exception_leaves_no_reference_cycle():
    async def call() -> None:
        with contextlib.suppress(Failure):
            await waiting.pop()

    future: Future[int] = Future()
    waiting, error = [future], Failure("no")
    reference = weakref.ref(error)
    gc.disable()
    try:
        run_coroutine(call())
        future.set_exception(error)
        del future, error
        assert reference() is None
    finally:
        gc.enable()


def test_run_in_executor_uses_another_thread_and_raises_its_exception():
    answered = threading.Event()
    results: list[object] = []

    async def call() -> None:
        results.append(await run_in_executor(threading.get_ident))
        try:
            await run_in_executor(int, "no number")
        except ValueError:
            results.append("an error")
        answered.set()

    run_coroutine(call())
    assert answered.wait(LONG)
    assert results[0] != threading.get_ident()
    assert results[1] == "an error"
