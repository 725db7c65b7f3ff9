"""Many calls of one shipped client and two servers: balanced by the client over the addresses of a
name, as a headless Service gives them, and by a proxy that speaks gRPC."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from serving.client import Client

CALLS = 400
ADDRESSES = ("127.0.0.1", "127.0.0.2")


class Names:
    """A DNS server that gives every name both addresses."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def _answer(self) -> None:
        while True:
            query, asker = self._socket.recvfrom(512)
            if not query:
                return
            end = query.index(b"\0", 12) + 5  # of the question: a name, a type and a class
            is_a = query[end - 4 : end - 2] == b"\0\x01"
            records = [
                # The name of offset 12, type A, class IN, no time to live, four bytes.
                struct.pack(">HHHIH", 0xC00C, 1, 1, 0, 4) + socket.inet_aton(address)
                for address in ADDRESSES
                if is_a
            ]
            header = query[:2] + struct.pack(">HHHHH", 0x8180, 1, len(records), 0, 0)
            self._socket.sendto(header + query[12:end] + b"".join(records), asker)

    def close(self) -> None:
        self._socket.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()


@pytest.fixture
def names() -> Iterator[Names]:
    server = Names()
    yield server
    server.close()


@pytest.fixture
def pair(start_server, toy_bundles):
    """Two servers on one port of two addresses."""
    first = start_server(toy_bundles, host=ADDRESSES[0])
    port = first.server.port
    return first, start_server(toy_bundles, host=ADDRESSES[1], port=port)


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


def test_the_client_balances_over_the_addresses_of_a_name(pair, names):
    port = pair[0].server.port
    calls(f"dns://127.0.0.1:{names.port}/latentd.latentd.svc:{port}")
    assert min(shares(pair)) > 0.4


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


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


def test_a_proxy_balances_the_calls_of_one_connection(pair, tmp_path):
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is not here: apt-get install nginx")
    proxy = free_port()
    text = NGINX.format(folder=tmp_path, port=pair[0].server.port, proxy=proxy)
    Path(tmp_path, "nginx.conf").write_text(text)
    process = subprocess.Popen([nginx, "-c", tmp_path / "nginx.conf", "-e", tmp_path / "error.log"])
    try:
        with grpc.insecure_channel(f"127.0.0.1:{proxy}") as channel:
            grpc.channel_ready_future(channel).result(timeout=30)  # it says nothing when it listens
        calls(f"127.0.0.1:{proxy}")
    finally:
        process.terminate()
        process.wait(30)
    assert min(shares(pair)) > 0.4
