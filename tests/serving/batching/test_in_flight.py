"""A thing is let go of when the last call that holds it has ended, and by nobody before."""

from __future__ import annotations

import threading

from latentd.batching.in_flight import InFlight
from latentd.calls.coroutines import CallContext

LONG = 20.0


def test_draining_waits_for_the_last_call_and_lets_no_other_in():
    in_flight, first, second = InFlight(), CallContext(), CallContext()
    assert in_flight.take(first)
    assert in_flight.take(second)
    first.done()
    assert not in_flight.drain(patience=0), "one holds it still"
    assert not in_flight.take(CallContext())
    drained = threading.Event()

    def drain() -> None:
        in_flight.drain()
        drained.set()

    thread = threading.Thread(target=drain)
    thread.start()
    assert not drained.is_set()
    second.done()
    assert drained.wait(LONG)
    thread.join()


def test_a_call_lets_go_once_however_often_it_is_said_to_have_ended():
    in_flight, caller, other = InFlight(), CallContext(), CallContext()
    in_flight.take(caller)
    in_flight.take(other)
    caller.done()
    caller.done()
    assert not in_flight.drain(patience=0)
    other.done()
    assert in_flight.drain(patience=0)
