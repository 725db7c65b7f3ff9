"""Thousands of calls over loopback, from separate processes: see `attacking`."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.support.http2 import Connection, call

PROCESSES = 2
AT_ONCE = 4  # calls in flight per connection


@dataclass(frozen=True)
class Attack:
    """The same call repeatedly, over `connections` connections, for `seconds`.

    payload: the call's DATA, including the prefix
    """

    port: int
    path: str
    payload: bytes
    connections: int
    seconds: float
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass
class Ends:
    """How the calls ended: counts by gRPC status; None: without a status."""

    statuses: Counter[int | None] = field(default_factory=Counter)


@contextmanager
def attacking(attack: Attack) -> Iterator[Ends]:
    """Run the attack during the block; it ends after its seconds."""
    context = multiprocessing.get_context("spawn")
    ends = Ends()
    with context.Pool(PROCESSES) as pool:
        pool.map(abs, range(PROCESSES), 1)  # they take time to start
        parts = [pool.apply_async(_attack, (attack, n)) for n in range(PROCESSES)]
        yield ends
        for part in parts:
            ends.statuses += part.get(timeout=attack.seconds + 120)


def _attack(attack: Attack, part: int) -> Counter[int | None]:
    statuses: Counter[int | None] = Counter()
    until = time.monotonic() + attack.seconds

    def run() -> None:
        while time.monotonic() < until:
            with Connection(attack.port) as connection:
                statuses.update(_calls(connection, attack, until))

    threads = [threading.Thread(target=run) for _ in range(part, attack.connections, PROCESSES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def _calls(connection: Connection, attack: Attack, until: float) -> list[int | None]:
    """Make calls over one connection until the time ends or the server closes it; returns their
    statuses."""
    first = 1
    while time.monotonic() < until:
        streams = range(first, first + 2 * AT_ONCE, 2)
        first += 2 * AT_ONCE
        try:
            connection.send(*(call(s, attack.path, *attack.headers) for s in streams))
            connection.pour(dict.fromkeys(streams, attack.payload))
            connection.wait_for(*streams)
        except (AssertionError, OSError):  # the server has closed this connection
            break
    return [answer.status for answer in connection.answers.values() if answer.ended]
