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


def test_call_that_is_in_flight_stays_so_when_it_asks_again_while_the_thing_closes():
    in_flight, context = InFlight(), CallContext()
    assert in_flight.acquire(context)
    assert not in_flight.drain(timeout=0)
    assert in_flight.acquire(context)
    assert not in_flight.drain(timeout=0)


def test_calls_that_come_while_the_thing_closes_are_served_before_or_refused():
    # `add` and `remove` take no lock: threads may change at any point.
    for _ in range(200):
        in_flight, start, drained = InFlight(), threading.Barrier(4), threading.Event()
        served_late: list[bool] = []

        def call(
            in_flight: InFlight = in_flight,
            start: threading.Barrier = start,
            drained: threading.Event = drained,
            served_late: list[bool] = served_late,
        ) -> None:
            start.wait(LONG)
            for one in [object() for _ in range(20)]:
                if in_flight.add(one):
                    served_late.append(drained.is_set())
                    in_flight.remove(one)

        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        start.wait(LONG)
        assert in_flight.drain(LONG)
        drained.set()
        for thread in threads:
            thread.join(LONG)
        assert not any(served_late)
