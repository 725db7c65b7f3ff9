"""Connections to a port that several sockets share, as workers share it, are given in turns."""

from __future__ import annotations

import errno
import os
import platform
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from latentd.process import reuseport
from tests.support.permissions import without_bpf

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="turns are Linux's")

DETACH = 68  # SO_DETACH_REUSEPORT_BPF
FORBIDDEN = ("CAP_BPF", os.strerror(errno.EPERM), os.strerror(errno.ENOSYS))

Listen = Callable[..., socket.socket]


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Listening sockets that share a port; 0: any free port."""
    with ExitStack() as opened:

        def listen(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            one = opened.enter_context(socket.socket(family))
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind((host, port))
            one.listen()
            one.setblocking(False)
            return one

        yield listen


def take_turns(port: int, workers: int) -> None:
    problem = reuseport.take_turns(port, workers)
    if any(why in problem for why in FORBIDDEN):
        pytest.skip(problem)
    assert problem == ""


def accepted(group: list[socket.socket], hosts: list[str]) -> list[int]:
    """How many connections each socket gets if clients connect to these hosts, one by one."""
    port = group[0].getsockname()[1]
    with ExitStack() as clients:
        for host in hosts:
            clients.enter_context(socket.create_connection((host, port)))
        counts = []
        for one in group:
            counts.append(0)
            while True:
                try:
                    connection, _ = one.accept()
                except BlockingIOError:
                    break
                clients.enter_context(connection)
                counts[-1] += 1
    return counts


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize(
    ("host", "clients"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("::1", ["::1"]),
        ("::", ["127.0.0.1"]),
        ("::", ["127.0.0.1", "::1"]),
    ],
)
def test_every_socket_gets_as_many(listen, host, clients, workers):
    group = [listen(host)]
    port = group[0].getsockname()[1]
    group += [listen(host, port) for _ in range(workers - 1)]
    take_turns(port, workers)
    for _ in range(8):  # a hash would do so too now and then
        assert accepted(group, clients * 2 * workers) == [2 * len(clients)] * workers


def test_connections_go_to_those_left_when_a_socket_closes_and_in_turns_when_it_is_replaced(listen):
    first, second, third = listen(), None, None
    port = first.getsockname()[1]
    second, third = listen(port=port), listen(port=port)
    take_turns(port, 3)
    second.close()
    assert sum(accepted([first, third], ["127.0.0.1"] * 12)) == 12
    second = listen(port=port)  # the program is still there
    for _ in range(8):
        assert accepted([first, second, third], ["127.0.0.1"] * 6) == [2, 2, 2]


def test_a_replacement_may_give_turns_again(listen):
    first = listen()
    port = first.getsockname()[1]
    group = [first, listen(port=port)]
    for _ in range(8):
        take_turns(port, 2)
        assert accepted(group, ["127.0.0.1"] * 4) == [2, 2]


def test_other_ports_and_sockets_are_left_as_they_are(listen):
    own, other = listen(), listen()
    other_port = other.getsockname()[1]
    listen(port=other_port)
    before = len(os.listdir("/proc/self/fd"))
    take_turns(own.getsockname()[1], 2)
    own.setsockopt(socket.SOL_SOCKET, DETACH, 0)
    with pytest.raises(FileNotFoundError):  # there is no program
        other.setsockopt(socket.SOL_SOCKET, DETACH, 0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_the_right_the_hash_stays_and_the_reason_is_told(listen):
    group = [listen()]
    port = group[0].getsockname()[1]
    group.append(listen(port=port))
    with without_bpf():
        assert reuseport.take_turns(port, 2) == "turns need the right CAP_BPF"
    with pytest.raises(FileNotFoundError):
        group[0].setsockopt(socket.SOL_SOCKET, DETACH, 0)
    assert sum(accepted(group, ["127.0.0.1"] * 4)) == 4


def test_a_kernel_that_refuses_is_told(listen, monkeypatch):
    port = listen().getsockname()[1]
    monkeypatch.setattr(reuseport, "_permitted", lambda: True)
    monkeypatch.setitem(reuseport._SYSCALLS, platform.machine(), 99_999)  # none has this number
    problem = reuseport.take_turns(port, 2)
    assert problem == "turns need eBPF, which failed with 'Function not implemented'"


@pytest.mark.parametrize(
    ("system", "machine", "expected"),
    [
        ("darwin", "x86_64", ""),
        ("linux", "mips64", "turns are not implemented for mips64"),
    ],
)
def test_other_platforms_are_left_as_they_are(listen, monkeypatch, system, machine, expected):
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    one = listen()
    assert reuseport.take_turns(one.getsockname()[1], 2) == expected
    with pytest.raises(FileNotFoundError):
        one.setsockopt(socket.SOL_SOCKET, DETACH, 0)


def test_number_that_becomes_a_file_meanwhile_leaks_nothing(monkeypatch, tmp_path):
    real = os.readlink
    with (tmp_path / "file").open("w") as file:
        path = f"/proc/self/fd/{file.fileno()}"
        monkeypatch.setattr(os, "readlink", lambda p: "socket:[1]" if p == path else real(p))
        before = len(os.listdir("/proc/self/fd"))
        assert not reuseport._listening(1)
        assert len(os.listdir("/proc/self/fd")) == before
