"""Servers that are lost: one of two behind a silent link, and a single one that restarts."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from latentd.client import Client
from latentd.errors import Unavailable
from tests.network.conftest import PORT
from tests.support.names import Names

ROWS, CHUNK = 50_000, 64


def test_cut_of_one_of_two_servers_loses_no_call(pair, record_property):
    target = "ipv4:" + ",".join(site.target for site in pair)
    with Client(target, timeout=30) as client:
        alone = {seed: client.sample(1, seed=seed).x.tobytes() for seed in range(16)}
        streams = [client.stream_samples(ROWS, seed=7, chunk_rows=CHUNK) for _ in pair]
        firsts = [next(stream).x for stream in streams]  # one from each server, by turns
        made, done = threading.Semaphore(0), threading.Event()

        def call() -> int:
            count = 0
            while not done.is_set():
                assert client.sample(1, seed=count % 16).x.tobytes() == alone[count % 16]
                count += 1
                made.release()
            return count

        with ThreadPoolExecutor(8) as callers:
            calls = [callers.submit(call) for _ in range(6)]
            for _ in range(200):
                assert made.acquire(timeout=60)
            with pair[0].link.cut_for(20):
                rests = list(callers.map(lambda s: [chunk.x for chunk in s], streams))
            for _ in range(200):
                assert made.acquire(timeout=60)
            done.set()
            count = sum(call.result() for call in calls)
    rows = [np.concatenate([first, *rest]) for first, rest in zip(firsts, rests, strict=True)]
    assert rows[0].shape == (ROWS, 4, 4)
    np.testing.assert_array_equal(*rows)
    record_property("figures", f"{count} calls made, 0 lost, {len(streams)} streams")


def test_restarted_server_is_waited_for(site):
    with Client(site.target, timeout=120) as client:
        wanted = client.sample(2, seed=7).x
        stream = client.stream_samples(ROWS, seed=7, chunk_rows=CHUNK)
        first = next(stream).x
        site.kill()
        with ThreadPoolExecutor(2) as callers:
            sample = callers.submit(client.sample, 2, seed=7)
            rest = callers.submit(lambda: [chunk.x for chunk in stream])
            site.start()
            assert sample.result().x.tobytes() == wanted.tobytes()
            rows = np.concatenate([first, *rest.result()])
        same = client.stream_samples(ROWS, seed=7, chunk_rows=CHUNK)
        np.testing.assert_array_equal(rows, np.concatenate([chunk.x for chunk in same]))


def test_server_is_found_at_its_new_address(pair):
    names = Names()
    names.addresses = [pair[0].link.address]
    try:
        with Client(f"dns://127.0.0.1:{names.port}/latentd.svc:{PORT}", timeout=30) as client:
            wanted = client.sample(2, seed=7).x
            pair[0].link.cut()
            names.addresses = [pair[1].link.address]
            assert client.sample(2, seed=7).x.tobytes() == wanted.tobytes()
    finally:
        names.close()


def test_address_where_nothing_listens_fails_at_first_contact(site):
    with (
        Client(f"{site.link.address}:9", timeout=None) as client,
        pytest.raises(Unavailable, match="Connection refused"),
    ):
        client.sample(1)
