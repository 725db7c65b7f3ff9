"""A thing is let go of when the last call that holds it has ended, and by nobody before."""

from __future__ import annotations

import threading

from serving.batching.holds import Holds
from serving.batching.tasks import Caller

LONG = 20.0


def test_draining_waits_for_the_last_call_and_lets_no_other_in():
    holds, first, second = Holds(), Caller(), Caller()
    assert holds.take(first)
    assert holds.take(second)
    first.done()
    assert not holds.drain(patience=0), "one holds it still"
    assert not holds.take(Caller())
    drained = threading.Event()

    def drain() -> None:
        holds.drain()
        drained.set()

    thread = threading.Thread(target=drain)
    thread.start()
    assert not drained.is_set()
    second.done()
    assert drained.wait(LONG)
    thread.join()


def test_a_call_lets_go_once_however_often_it_is_said_to_have_ended():
    holds, caller, other = Holds(), Caller(), Caller()
    holds.take(caller)
    holds.take(other)
    caller.done()
    caller.done()
    assert not holds.drain(patience=0)
    other.done()
    assert holds.drain(patience=0)
