"""Many calls of one shipped client to several servers: balanced by the client over the addresses of
a name, as a headless Service gives them, and by proxies that speak gRPC."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from latentd.client import Client
from tests.support.names import Names
from tests.support.server import free_port

CALLS = 400
ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


@pytest.fixture
def start_servers(start_server, toy_bundles) -> Callable[..., list]:
    """Start servers on one port, each on the next of ADDRESSES."""

    def start(count: int, **chosen: object) -> list:
        servers = [start_server(toy_bundles, host=ADDRESSES[0], **chosen)]
        port = servers[0].server.port
        for address in ADDRESSES[1:count]:
            servers.append(start_server(toy_bundles, host=address, port=port, **chosen))
        return servers

    return start


def calls(target: str) -> None:
    """CALLS of one client, from a few threads; each answer is its own caller's."""
    with Client(target) as client, ThreadPoolExecutor(4) as callers:
        alone = {seed: client.sample(1, seed=seed).x.tobytes() for seed in range(8)}

        def call(number: int) -> None:
            assert client.sample(1, seed=number % 8).x.tobytes() == alone[number % 8]

        list(callers.map(call, range(CALLS)))


def shares(servers) -> list[float]:
    """How many calls each server has answered, of all."""
    labels = {"method": "Sample", "model": "toy", "code": "OK"}
    answered = [server.metric("latentd_requests_total", **labels) for server in servers]
    assert sum(answered) == CALLS + 8
    return [count / sum(answered) for count in answered]


def service(names: Names, servers) -> str:
    return f"dns://127.0.0.1:{names.port}/latentd.latentd.svc:{servers[0].server.port}"


@pytest.mark.parametrize("count", [2, 3])
def test_client_balances_over_the_addresses_of_a_name(start_servers, names, count):
    servers = start_servers(count)
    names.addresses = ADDRESSES[:count]
    calls(service(names, servers))
    assert min(shares(servers)) > 0.8 / count


AGE = 2.0  # seconds of a connection
RESOLVE_SECONDS = 5.0  # the least time between two DNS look-ups of a client
PATIENCE = 2 * (AGE + RESOLVE_SECONDS)  # until a new server is given up


@pytest.mark.slow
@pytest.mark.parametrize("age", [AGE, 0.0], ids=["aged", "ageless"])
def test_new_server_gets_its_share_when_connections_expire(start_servers, names, age):
    servers = start_servers(3, max_connection_age_seconds=age)
    names.addresses = ADDRESSES[:2]

    def answered() -> list[float]:
        labels = {"method": "Sample", "model": "toy", "code": "OK"}
        return [server.metric("latentd_requests_total", **labels) for server in servers]

    with Client(service(names, servers)) as client:
        # The connections are there before the third server has a name.
        for _ in range(100):
            client.sample(1)
        names.addresses, began = ADDRESSES, time.monotonic()
        with under_load(client) as made:
            while answered()[2] < 100 and time.monotonic() < began + (
                2 * PATIENCE if age else PATIENCE
            ):
                assert made.acquire(timeout=60)
            found, before = time.monotonic() - began, answered()
            while sum(answered()) < sum(before) + 2000:
                assert made.acquire(timeout=60)
            counts = [now - then for now, then in zip(answered(), before, strict=True)]
    print(f"after {found:.1f} s, then of {sum(counts):.0f} calls {counts}")
    if age:
        assert min(counts) / sum(counts) > 0.8 / 3
    else:
        assert counts[2] == 0, "what the age of connections is for"


@contextmanager
def under_load(client: Client) -> Iterator[threading.Semaphore]:
    """Calls without end from two threads, released once for each; all must be answered."""
    made, done = threading.Semaphore(0), threading.Event()

    def load() -> None:
        while not done.is_set():
            client.sample(1)
            made.release()

    with ThreadPoolExecutor(2) as callers:
        running = [callers.submit(load) for _ in range(2)]
        try:
            yield made
        finally:
            done.set()
        for one in running:
            one.result()


NGINX = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream latentd {{
        server 127.0.0.1:{port};
        server 127.0.0.2:{port};
        keepalive 16;
    }}
    server {{
        listen 127.0.0.1:{proxy} http2;
        location / {{ grpc_pass grpc://latentd; }}
    }}
}}
"""


HAPROXY = """
global
    maxconn 256
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend callers
    bind 127.0.0.1:{proxy} proto h2
    default_backend latentd
backend latentd
    balance roundrobin
    server a 127.0.0.1:{port} proto h2
    server b 127.0.0.2:{port} proto h2
"""


@pytest.mark.parametrize(
    ("name", "text", "arguments"),
    [
        ("nginx", NGINX, ["-c", "{folder}/configuration", "-e", "{folder}/error.log"]),
        ("haproxy", HAPROXY, ["-db", "-f", "{folder}/configuration"]),
    ],
    ids=["nginx", "haproxy"],
)
def test_proxy_balances_the_calls_of_one_connection(
    start_servers, start_process, tmp_path, name, text, arguments
):
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if program is None:
        pytest.skip(f"{name} is not here: apt-get install {name}")
    servers, proxy = start_servers(2), free_port()
    text = text.format(folder=tmp_path, port=servers[0].server.port, proxy=proxy)
    Path(tmp_path, "configuration").write_text(text)
    start_process([program, *(one.format(folder=tmp_path) for one in arguments)])
    with grpc.insecure_channel(f"127.0.0.1:{proxy}") as channel:
        grpc.channel_ready_future(channel).result(timeout=60)  # it says nothing when it listens
    calls(f"127.0.0.1:{proxy}")
    assert min(shares(servers)) > 0.4
