"""Servers on hosts of their own, behind links that the tests cut."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from latentd.client import Client
from tests.support.network import Host, Link, missing, raise_loopback
from tests.support.processes import running

ROOT = Path(__file__).resolve().parents[2]
PORT = 50051
SECONDS = 120  # only broken code makes a test wait so long


class Site:
    """A server on a host of its own, and the link to it."""

    def __init__(self, bundles: Path, log: Path, stack: ExitStack) -> None:
        self.host, self._bundles, self._log = Host(), bundles, log
        stack.callback(self.host.close)
        self.link = Link(self.host)
        stack.callback(self.link.close)
        self.target = f"{self.link.address}:{PORT}"
        self._servers = stack.enter_context(ExitStack())
        self.start()

    def start(self) -> None:
        """Start a server, and wait until it serves."""
        serve = (sys.executable, "-m", "latentd", "serve", "--bundles", self._bundles)
        flags = ("--host", self.link.address, "--port", PORT, "--workers", 1)
        with self._log.open("a") as log:
            command = [*self.host.run, *serve, *flags]
            self._servers.enter_context(running(command, cwd=ROOT, stderr=log))
        soon = [("grpc.max_reconnect_backoff_ms", 200), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self.target, soon) as channel:
            request = health_pb2.HealthCheckRequest()
            health = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(request, timeout=SECONDS, wait_for_ready=True)
            assert any(change.status == health_pb2.HealthCheckResponse.SERVING for change in watch)

    def ended(self, method: str, code: str) -> float:
        """How many calls have ended with a status, as the server counts them; read on its host."""
        url = f"http://{self.link.address}:9464/metrics"
        read = f"from urllib.request import urlopen; print(urlopen({url!r}).read().decode())"
        command = [*self.host.run, sys.executable, "-c", read]
        page = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        families = text_string_to_metric_families(page)
        samples = (sample for family in families for sample in family.samples)
        ours = (s for s in samples if s.name == "latentd_requests_total")
        return sum(
            s.value for s in ours if (s.labels["method"], s.labels["code"]) == (method, code)
        )

    def kill(self) -> None:
        """Kill the server; its host stays and refuses connections."""
        self._servers.close()


@pytest.fixture(scope="session", autouse=True)
def _namespace() -> None:
    if reason := missing():
        pytest.skip(reason)
    raise_loopback()


@contextmanager
def sites(bundles: Path, folder: Path, count: int) -> Iterator[list[Site]]:
    with ExitStack() as stack:
        yield [Site(bundles, folder / f"server{n}.log", stack) for n in range(count)]


@pytest.fixture(scope="module")
def module_site(toy_bundles, tmp_path_factory) -> Iterator[Site]:
    with sites(toy_bundles, tmp_path_factory.mktemp("servers"), 1) as started:
        yield started[0]


@pytest.fixture
def site(module_site) -> Iterator[Site]:
    """A server that a module's tests share; its link is as new after each test."""
    yield module_site
    module_site.link.repair()
    module_site.link.delay = module_site.link.jitter = 0.0
    module_site.link.rate = float("inf")


@pytest.fixture
def pair(toy_bundles, tmp_path) -> Iterator[list[Site]]:
    """Two servers with a link each."""
    with sites(toy_bundles, tmp_path, 2) as started:
        yield started


@pytest.fixture
def client(site) -> Iterator[Client]:
    """A client that has met the server."""
    with Client(site.target) as client:
        client.sample(1)
        yield client
