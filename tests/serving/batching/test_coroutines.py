"""Replies are answered once, calls run on where their answer is, and end with their caller."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref

import pytest

from latentd.calls.coroutines import (
    CallContext,
    Cancelled,
    Future,
    run_coroutine,
    run_in_executor,
)

LONG = 20.0


def test_the_first_answer_counts_and_is_told_once():
    reply: Future[int] = Future()
    told: list[str] = []
    assert reply.then(lambda: told.append("told"))
    reply.set_result(1)
    reply.set_result(2)
    reply.set_exception(ValueError("too late"))
    assert told == ["told"]
    got: list[int] = []

    async def read() -> None:
        got.append(await reply)

    run_coroutine(read())
    assert got == [1]


def test_whoever_waits_for_an_answered_reply_goes_on_by_itself():
    reply: Future[int] = Future()
    reply.set_result(1)
    assert not reply.then(lambda: None)


def test_a_call_runs_on_in_the_thread_that_answers():
    reply: Future[str] = Future()
    threads: list[int | None] = []

    async def call() -> None:
        threads.append(threading.get_ident())
        await reply
        threads.append(threading.get_ident())

    run_coroutine(call())
    other = threading.Thread(target=reply.set_result, args=("now",))
    other.start()
    other.join()
    assert threads == [threading.get_ident(), other.ident]


def test_errors_are_raised_where_the_reply_is_awaited():
    reply: Future[int] = Future()
    caught: list[str] = []

    async def call() -> None:
        try:
            await reply
        except ValueError as error:
            caught.append(str(error))

    run_coroutine(call())
    reply.set_exception(ValueError("no"))
    assert caught == ["no"]


def test_an_error_that_nothing_caught_is_logged_and_spares_the_thread(caplog):
    async def call() -> None:
        raise RuntimeError("a bug")

    run_coroutine(call())
    assert "a bug" in caplog.text


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_caller_that_goes_cancels_what_waits_for_it(when):
    caller, withdrawn = CallContext(), []
    reply: Future[int] = Future(on_cancel=lambda: withdrawn.append("withdrawn"))
    if when == "before":
        caller.cancel()
    caller.on_cancel(reply)
    caller.cancel()
    ended: list[str] = []

    async def call() -> None:
        try:
            await reply
        except Cancelled:
            ended.append("cancelled")

    run_coroutine(call())
    assert (withdrawn, ended) == (["withdrawn"], ["cancelled"])


def test_a_call_that_ends_withdraws_what_it_began_and_does_not_wait_for():
    caller, withdrawn = CallContext(), []
    answered: Future[int] = Future(on_cancel=lambda: withdrawn.append("answered"))
    ahead: Future[int] = Future(on_cancel=lambda: withdrawn.append("ahead"))
    caller.on_cancel(answered)
    answered.set_result(1)
    caller.on_cancel(ahead)
    caller.done()
    assert withdrawn == ["ahead"]


def test_a_long_call_keeps_nothing_of_what_it_has_had():
    class Rows:
        pass

    async def stream() -> None:
        for reply in replies:
            caller.on_cancel(reply)
            await reply
        caller.on_cancel(Future())

    caller, chunks = CallContext(), [Rows() for _ in range(3)]
    replies: list[Future[Rows]] = [Future() for _ in chunks]
    kept = [weakref.ref(chunk) for chunk in chunks]
    for reply, chunk in zip(replies, chunks, strict=True):
        reply.set_result(chunk)
    run_coroutine(stream())
    del reply, chunk, chunks[:], replies[:]
    assert [chunk() for chunk in kept] == [None] * 3


class Failure(Exception):
    """One that can be asked whether it is still there."""


def test_an_error_leaves_no_cycle_behind():
    async def call() -> None:
        with contextlib.suppress(Failure):
            await waiting.pop()

    reply: Future[int] = Future()
    waiting, error = [reply], Failure("no")
    gone = weakref.ref(error)
    gc.disable()
    try:
        run_coroutine(call())
        reply.set_exception(error)
        del reply, error
        assert gone() is None
    finally:
        gc.enable()


def test_work_is_done_off_the_callers_thread_and_its_error_comes_back():
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
