"""Two servers and the client: the loss of one server loses no call."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from latentd.client import Client
from latentd.errors import Unavailable
from tests.support.server import free_port

CALLERS = 12
SECONDS = 120  # until something that should happen counts as missing
TIMEOUT = 30.0  # of each call, seconds: by then the loss of a server has to be made good


class Load:
    """Clients that call until the block ends, and the outcomes of their calls."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self.answered = 0
        self.longest = 0.0  # seconds
        self.failures: list[Exception] = []

    def tell(self, record_property: Callable[[str, object], None]) -> None:
        """The number of calls, for the table of tests/FAULTS.md."""
        lost, longest = len(self.failures), self.longest
        figures = f"{self.answered} calls made, {lost} lost, the longest {longest:.1f} s"
        record_property("figures", figures)

    def reach(self, more: int) -> None:
        """Wait until this many more calls have succeeded."""
        with self._changed:
            wanted = self.answered + more
            done = self._changed.wait_for(lambda: self.answered >= wanted, SECONDS)
            assert done, f"{self.answered} of {wanted}, {self.failures[:3]}"

    @contextmanager
    def running(self) -> Iterator[Load]:
        threads = [threading.Thread(target=self._ask) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _ask(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                assert len(self._client.sample(1, seed=7)) == 1
            except Exception as error:
                self.failures.append(error)
            with self._changed:
                self.answered += 1
                self.longest = max(self.longest, time.monotonic() - began)
                self._changed.notify_all()


class Pair:
    """Two servers, each of which can be restarted on its port."""

    def __init__(self, serve, bundles) -> None:
        self._serve, self._bundles = serve, bundles
        self.processes = [self._start(str(free_port())) for _ in range(2)]
        self.ports = [p.ready()[0].rpartition(":")[2] for p in self.processes]
        self.target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def restart(self, number: int) -> None:
        self.processes[number] = self._start(self.ports[number])
        self.processes[number].ready()

    def _start(self, port: str):
        flags = ("--workers", "1", "--port", port)
        return self._serve("--bundles", str(self._bundles), *flags)


@pytest.fixture
def pair(serve, toy_bundles) -> Pair:
    return Pair(serve, toy_bundles)


@pytest.fixture
def client(pair) -> Iterator[Client]:
    with Client(pair.target, timeout=TIMEOUT) as client:
        yield client


@pytest.mark.slow
def test_rolling_restart_loses_no_call(pair, client, record_property):
    with Load(client).running() as load:
        while load.answered < 5000:
            for number in (0, 1):
                load.reach(1000)  # by both
                pair.processes[number].signal(signal.SIGTERM)
                assert pair.processes[number].exit_status() == 0
                pair.restart(number)
    load.tell(record_property)
    assert load.failures == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_retries_hide_the_loss_of_one_server(pair, client, number, record_property):
    with Load(client).running() as load:
        load.reach(200)
        pair.processes[0].signal(number)
        load.reach(1000)
    load.tell(record_property)
    assert load.failures == []


def test_without_retries_the_loss_shows(pair, record_property):
    # What the tests above would see of a client that hides nothing.
    with Client(pair.target, attempts=1) as client, Load(client).running() as load:
        for _ in range(10):  # a kill may meet no call on its way
            load.reach(200)
            pair.processes[0].signal(signal.SIGKILL)
            pair.processes[0].exit_status()
            load.reach(200)
            if load.failures:
                break
            pair.restart(0)
    load.tell(record_property)
    assert load.failures
    assert {type(failure) for failure in load.failures} == {Unavailable}
