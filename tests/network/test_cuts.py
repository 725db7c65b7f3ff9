"""Links that lose every packet for a while, in one direction or both, without a word: calls use the
time that they were given, and the rows are those of an undisturbed network."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import numpy as np
import pytest

from latentd.client import AsyncClient, Client
from latentd.errors import Unavailable
from tests.network.conftest import SECONDS, Site

ROWS, CHUNK = 50_000, 64
X = np.arange(ROWS * 16, dtype=np.uint32).astype(np.uint8).reshape(ROWS, 4, 4)
CALLERS = 6

Ready = Callable[[], object]
"""Waits until all callers are in the middle of their calls; then the link is cut."""


def chunks(ready: Ready) -> Iterator[np.ndarray]:
    """X in chunks. The link is cut after a few, while responses are on their way."""
    for number, start in enumerate(range(0, ROWS, CHUNK)):
        if number == 5:
            ready()
        yield X[start : start + CHUNK]


def sample(target: str, ready: Ready) -> np.ndarray:
    with Client(target, timeout=30) as client:
        client.sample(1)
        ready()
        return client.sample(9, seed=7).x


def encode(target: str, ready: Ready) -> np.ndarray:
    with Client(target, timeout=30) as client:
        client.sample(1)
        ready()
        return client.encode(X[:1000]).mean


def stream_samples(target: str, ready: Ready) -> np.ndarray:
    with Client(target) as client:
        stream = client.stream_samples(ROWS, seed=7, chunk_rows=CHUNK)
        first = next(stream)
        ready()
        return np.concatenate([first.x, *(chunk.x for chunk in stream)])


def stream_reconstruct(target: str, ready: Ready) -> np.ndarray:
    with Client(target) as client:
        return np.concatenate([part.x for part in client.stream_reconstruct(chunks(ready))])


def sample_async(target: str, ready: Ready) -> np.ndarray:
    async def call() -> np.ndarray:
        async with AsyncClient(target, timeout=30) as client:
            await client.sample(1)
            await asyncio.to_thread(ready)
            return (await client.sample(9, seed=7)).x

    return asyncio.run(call())


def stream_samples_async(target: str, ready: Ready) -> np.ndarray:
    async def call() -> np.ndarray:
        async with AsyncClient(target) as client:
            stream = client.stream_samples(ROWS, seed=7, chunk_rows=CHUNK)
            async with aclosing(stream):
                parts = [(await anext(stream)).x]
                await asyncio.to_thread(ready)
                parts += [chunk.x async for chunk in stream]
            return np.concatenate(parts)

    return asyncio.run(call())


CALLS = (
    sample,
    encode,
    stream_samples,
    stream_reconstruct,
    sample_async,
    stream_samples_async,
)


@pytest.fixture(scope="module")
def undisturbed(module_site) -> list[np.ndarray]:
    """The rows of each of CALLS."""
    return [call(module_site.target, lambda: None) for call in CALLS]


def cut(site: Site, seconds: float, *ways: str) -> tuple[list[np.ndarray], list[float]]:
    """All of CALLS, with the link cut for a while in their middle: their rows, and how long each
    took after the repair."""
    repaired = threading.Event()
    at = [0.0]

    def break_link() -> None:
        site.link.cut(up="up" in ways, down="down" in ways)

        def repair() -> None:
            at[0] = time.monotonic()
            site.link.repair()
            repaired.set()

        threading.Timer(seconds, repair).start()

    ready = threading.Barrier(len(CALLS), break_link)
    with ThreadPoolExecutor(len(CALLS)) as callers:

        def run(call) -> tuple[np.ndarray, float]:
            rows = call(site.target, lambda: ready.wait(SECONDS))
            return rows, time.monotonic()

        results = list(callers.map(run, CALLS))
    assert repaired.wait(SECONDS)
    return [rows for rows, _ in results], [max(0.0, end - at[0]) for _, end in results]


@pytest.mark.parametrize("ways", [("up", "down"), ("up",), ("down",)], ids="-".join)
@pytest.mark.parametrize("seconds", [4, 9])
def test_calls_outlast_a_cut(site, undisturbed, seconds, ways, record_property):
    rows, after = cut(site, seconds, *ways)
    figures = [f"{call.__name__} {s:.1f}" for call, s in zip(CALLS, after, strict=True)]
    record_property("figures", f"seconds from the repair to the end: {', '.join(figures)}")
    for got, wanted in zip(rows, undisturbed, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_stream_without_a_deadline_outlasts_a_long_cut(site, client, caplog):
    wanted = np.concatenate([c.x for c in client.stream_samples(ROWS, seed=7, chunk_rows=CHUNK)])
    stream = client.stream_samples(ROWS, seed=7, chunk_rows=CHUNK)
    first = next(stream).x
    with site.link.cut_for(40):
        got = np.concatenate([first, *(chunk.x for chunk in stream)])
    np.testing.assert_array_equal(got, wanted)
    lines = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) >= 5, "it says every few seconds what it waits for"
    assert f"{site.target} is unavailable" in lines[0]
    assert "waiting for it" in lines[0]
    assert lines[-1].startswith(f"{site.target} answers again")


def test_call_ends_at_its_deadline_when_the_cut_is_longer(site, client):
    with site.link.cut_for(25):
        with pytest.raises(Unavailable, match=site.target):
            client.sample(1, timeout=12)
        assert site.link.up.lost, "too late"
    assert len(client.sample(1)) == 1


def test_stream_gives_up_after_the_reconnect_timeout(site):
    with Client(site.target, reconnect_timeout=8) as client:
        stream = client.stream_samples(10**9)
        next(stream)
        with site.link.cut_for(25):
            with pytest.raises(Unavailable, match=site.target):
                list(stream)
            assert site.link.up.lost, "too late"


def test_calls_reach_a_far_server(site, undisturbed):
    # Several round trips of 0.6 s and more, as over a satellite, until it has answered.
    site.link.delay, site.link.jitter = 0.3, 0.2
    assert sample(site.target, lambda: None).tobytes() == undisturbed[0].tobytes()
    assert stream_samples(site.target, lambda: None).tobytes() == undisturbed[2].tobytes()


def test_large_messages_arrive_over_a_slow_link(site, client):
    # 1 Mbit/s: the answers to gRPC's pings wait behind 4 s of rows.
    wanted = client.encode(X[:4096]).mean
    site.link.rate = 125_000
    with Client(site.target, timeout=SECONDS, attempts=1) as impatient:
        np.testing.assert_array_equal(impatient.encode(X[:4096]).mean, wanted)


def test_server_forgets_a_stream_whose_client_is_unreachable(site, record_property):
    with Client(site.target) as client:
        before = site.ended("StreamSamples", "CANCELLED")
        stream = client.stream_samples(ROWS, seed=7, chunk_rows=CHUNK)
        first = next(stream).x
        site.link.cut()
        began = time.monotonic()
        while site.ended("StreamSamples", "CANCELLED") == before:
            assert time.monotonic() - began < SECONDS, "the server keeps the stream"
        record_property("figures", f"after {time.monotonic() - began:.0f} s")
        site.link.repair()
        got = np.concatenate([first, *(chunk.x for chunk in stream)])
    np.testing.assert_array_equal(got, stream_samples(site.target, lambda: None))


def test_silent_address_fails_at_first_contact(site):
    with site.link.cut_for(40), Client(site.target, timeout=SECONDS) as client:
        with pytest.raises(Unavailable, match=site.target):
            client.sample(1)
        assert site.link.up.lost, "the client gave up before its deadline: the address may be wrong"
