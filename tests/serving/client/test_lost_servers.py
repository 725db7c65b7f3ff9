"""A client waits for servers that have answered it before, as long as its calls may take."""

from __future__ import annotations

import asyncio
import logging
import math
import time

import pytest

from latentd.client import AsyncClient, Client, retry
from latentd.client.retry import Backoff, Contact, RetryPolicy
from latentd.errors import DeadlineExceeded, InvalidArgument, Overloaded, Unavailable
from tests.support.fake_server import CHUNK, DRAINING, FakeServer, ScriptedService

MANY = 20  # failures: more than any number of attempts


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of milliseconds."""
    monkeypatch.setattr(retry, "MAX_WAIT", 0.002)


@pytest.mark.usefixtures("quick")
def test_lost_server_is_asked_again_until_it_answers(
    client: Client, script: ScriptedService
) -> None:
    client.sample(1)
    script.faults.extend([DRAINING] * MANY)
    assert len(client.sample(1)) == 1
    script.faults.extend([DRAINING] * MANY)
    assert sum(map(len, client.stream_samples(3 * CHUNK))) == 3 * CHUNK
    assert len(script.requests) == 2 * (MANY + 1) + 1


@pytest.mark.usefixtures("quick")
def test_async_client_waits_too(scripted: FakeServer, script: ScriptedService) -> None:
    async def calls() -> None:
        async with AsyncClient(scripted.target) as client:
            await client.sample(1)
            script.faults.extend([DRAINING] * MANY)
            assert len(await client.sample(1)) == 1

    asyncio.run(calls())
    assert len(script.requests) == MANY + 2


@pytest.mark.usefixtures("quick")
def test_server_that_has_never_answered_is_given_up_soon(
    scripted: FakeServer, script: ScriptedService
) -> None:
    script.faults.extend([DRAINING] * MANY)
    with Client(scripted.target, attempts=3, timeout=None) as client, pytest.raises(Unavailable):
        client.sample(1)
    assert len(script.requests) == 3
    with Client(scripted.target, attempts=3, wait_for_ready=True) as client:
        assert len(client.sample(1)) == 1
    assert len(script.requests) == MANY + 1


@pytest.mark.usefixtures("quick")
def test_errors_that_waiting_does_not_cure_are_raised_at_once(
    client: Client, script: ScriptedService
) -> None:
    client.sample(1)
    script.faults.extend([DRAINING, InvalidArgument("count", "5000 were asked for")])
    with pytest.raises(InvalidArgument):
        client.sample(1)
    assert len(script.requests) == 3


@pytest.mark.usefixtures("quick")
def test_call_without_a_deadline_gives_up_after_the_reconnect_timeout(
    scripted: FakeServer, script: ScriptedService
) -> None:
    with Client(scripted.target, timeout=None, reconnect_timeout=0.5) as client:
        client.sample(1)
        scripted.stop()
        began = time.monotonic()
        with pytest.raises(Unavailable):
            client.sample(1)
        assert time.monotonic() - began > 0.4
        with pytest.raises(Unavailable):
            list(client.stream_samples(CHUNK))


@pytest.mark.usefixtures("quick")
def test_stream_that_has_begun_waits_for_an_overloaded_server(
    client: Client, script: ScriptedService
) -> None:
    busy = Overloaded("full", "The queue is full", 0.001)
    script.faults.extend([(1, busy), *[(0, busy)] * MANY])
    assert sum(map(len, client.stream_samples(3 * CHUNK))) == 3 * CHUNK
    assert len(script.requests) == MANY + 2


def policy(attempts: int = 4) -> RetryPolicy:
    return RetryPolicy(attempts, math.inf, Contact("one:1", made=True))


def test_waits_stay_bounded_however_many_there_are() -> None:
    backoff = Backoff(policy(), None)
    waits = [backoff.wait_after(Unavailable("lost")) for _ in range(2000)]
    assert max(waits) <= retry.MAX_WAIT
    assert waits[0] <= retry.FIRST_WAIT
    with pytest.raises(Unavailable):
        Backoff(policy(attempts=1), None).wait_after(Unavailable("lost"))


def test_deadline_in_an_outage_is_reported_as_the_outage() -> None:
    backoff = Backoff(policy(), 30.0)
    backoff.wait_after(Unavailable("the link is down"))
    with pytest.raises(Unavailable, match="the link is down"):
        backoff.wait_after(DeadlineExceeded("late"))
    backoff.answered()
    with pytest.raises(DeadlineExceeded):
        backoff.wait_after(DeadlineExceeded("late"))


def test_log_says_what_is_waited_for(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    now = 100.0
    monkeypatch.setattr(retry.time, "monotonic", lambda: now)
    contact = Contact("one:1", made=True)
    for now in (100.0, 100.5):  # noqa: B007 (the clock)
        contact.lost(Unavailable("one:1 is unavailable (refused)."), 30.0)
    contact.answered()  # by another server
    for now in (101.0, 101.5, 104.0, 105.0, 109.5):
        contact.lost(Unavailable("one:1 is unavailable (refused)."), 130.0 - now)
    now = 110.0
    contact.answered()
    contact.answered()
    assert [(r.levelno, r.message) for r in caplog.records] == [
        (logging.WARNING, line)
        for line in (
            "one:1 is unavailable (refused). Lost 3 s ago; waiting for it for 26 s more.",
            "one:1 is unavailable (refused). Lost 8 s ago; waiting for it for 20 s more.",
            "one:1 answers again after 9 s.",
        )
    ]
