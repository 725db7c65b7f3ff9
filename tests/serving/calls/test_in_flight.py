"""A thing is released after the last call that uses it has ended, and not before."""

from __future__ import annotations

import threading

from latentd.calls.context import CallContext
from latentd.calls.in_flight import InFlight
from tests.support.wait import LONG


def test_drain_waits_for_the_last_call_and_accepts_no_other():
    in_flight, first, second = InFlight(), CallContext(), CallContext()
    assert in_flight.acquire(first)
    assert in_flight.acquire(second)
    first.finish()
    assert not in_flight.drain(timeout=0), "one call is still in flight"
    assert not in_flight.acquire(CallContext())
    drained = threading.Event()

    def drain() -> None:
        in_flight.drain()
        drained.set()

    thread = threading.Thread(target=drain)
    thread.start()
    assert not drained.is_set()
    second.finish()
    assert drained.wait(LONG)
    thread.join()


def test_call_releases_once_when_finished_twice():
    in_flight, context, other = InFlight(), CallContext(), CallContext()
    in_flight.acquire(context)
    in_flight.acquire(other)
    context.finish()
    context.finish()
    assert not in_flight.drain(timeout=0)
    other.finish()
    assert in_flight.drain(timeout=0)
