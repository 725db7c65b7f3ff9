"""A server in the process of the tests, and free ports."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from latentd import settings
from latentd.process.server import Server
from tests.support.fake_cuda import COUNTERS

PROVIDER = os.environ.get("TEST_PROVIDER", "cpu")
"""What the servers in this process run on: all tests pass on `cuda` too."""


class RunningServer:
    """A server in this process, with an event loop and a thread of its own, and a real port."""

    def __init__(self, chosen: settings.Settings) -> None:
        self._settings = chosen
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._live, name="test-server")
        self._thread.start()
        try:
            self._ready.wait()
        except BaseException:  # the test's time is over; the process ends only after its servers
            self.loop.call_soon_threadsafe(self._starting.cancel)
            self.loop.call_soon_threadsafe(self.server.request_stop, False)
            raise
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        self.target = f"127.0.0.1:{self.server.port}"

    def _live(self) -> None:
        async def life() -> None:
            self.loop = asyncio.get_running_loop()
            self.server = Server(self._settings)
            self._starting = asyncio.ensure_future(self.server.start())
            try:
                await self._starting
            except BaseException as error:
                self._failure = error
                await self.server.stop()
                return
            finally:
                self._ready.set()
            await self.server.stopping()
            await self.server.stop()

        asyncio.run(life())

    def stop(self) -> None:
        """Stop it and wait for its end; a second call does nothing."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.server.request_stop, False)
            self._thread.join()

    def scan(self) -> None:
        """Scan for new versions now, as the poller would, and wait for the loads."""
        self.server.repository.scan()
        self.server.repository.settle()

    def metric(self, name: str, **labels: str) -> float:
        """A sample's value as a scrape would give it now; 0 where there is none yet."""
        return self.server.metrics.registry.get_sample_value(name, labels) or 0.0

    def calls(self, method: str) -> int:
        """How many calls of a method have ended, whatever their status."""
        samples = [s for m in self.server.metrics.registry.collect() for s in m.samples]
        ours = [s for s in samples if s.name == "latentd_requests_total"]
        return int(sum(s.value for s in ours if s.labels["method"] == method))


StartServer = Callable[..., RunningServer]


@contextmanager
def server_starter() -> Iterator[StartServer]:
    with ExitStack() as running:

        def start(bundles: Path, **chosen: object) -> RunningServer:
            flags = {"bundles": bundles, "port": 0, "metrics_port": 0}
            flags["provider"] = _provider(bundles)
            # A trial takes half a second; tests/e2e has them, and those of versions that need one.
            flags["load_trial"] = "false"
            texts = {name: str(value) for name, value in (flags | chosen).items()}
            server = RunningServer(settings.load_settings(texts, environment={}))
            running.callback(server.stop)
            return server

        yield start


def _provider(bundles: Path) -> str:
    """PROVIDER, but convolutions run on the CPU if the CUDA libraries are fake: these have none."""
    fake = COUNTERS in os.environ
    with suppress(OSError):  # some tests close the folder
        if fake and any(b"Conv" in graph.read_bytes() for graph in bundles.rglob("*.onnx")):
            return "cpu"
    return PROVIDER


def free_port() -> int:
    """A port that no process listens on now. The kernel gives no such port to a process that asks
    for any port."""
    with socket.socket() as one:
        while True:
            with suppress(OSError):
                one.bind(("127.0.0.1", random.randint(10_000, 30_000)))
                return int(one.getsockname()[1])
