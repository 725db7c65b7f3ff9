"""Hosts of their own in network namespaces, and links to them that delay and lose packets as told.

The packets of real sockets pass through this process, which holds both ends of a link (TUN
devices). So delay and silent loss need no kernel module, and everything ends with this process.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import os
import random
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_TUN: Final = "/dev/net/tun"
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_MTU: Final = 1500
_QUEUE: Final = 1 << 20  # bytes that wait for a slow link; more are lost, as in a router


def missing() -> str:
    """What keeps this process from having such a network; empty: nothing does."""
    if [name for _, name in socket.if_nameindex()] != ["lo"]:
        return "this process has no network of its own: run `make test-network`, as root"
    if not os.access(_TUN, os.R_OK | os.W_OK):
        return f"{_TUN} cannot be opened: the kernel's module tun, and its device, are needed"
    return ""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class Host:
    """A network namespace; `run` is the beginning of every command in it."""

    def __init__(self) -> None:
        command = "ip link set lo up && echo up && exec cat"  # cat ends when this process does
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "up\n"
        self.run: Final = ("nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "--")

    def take(self, device: str) -> None:
        """Move a device of this process's namespace into this one."""
        _ip("link", "set", device, "netns", str(self._holder.pid))

    def ip(self, *words: str) -> None:
        """iproute2's `ip` in the namespace."""
        subprocess.run([*self.run, "ip", *words], check=True)

    def close(self) -> None:
        """End the namespace. Its processes have to have ended."""
        self._holder.communicate()


class _Direction:
    """Packets on their way through a link, from one device to the other."""

    def __init__(self, source: int, sink: int) -> None:
        self.source, self._sink = source, sink
        self.lost = False
        self.delivered = 0  # bytes
        self._waiting: list[tuple[float, int, bytes]] = []
        self._bytes = self._count = 0
        self._sent_at = 0.0  # when the last of them will have been sent
        self._due = 0.0  # when the last of them will have arrived

    def receive(self, delay: float, jitter: float, rate: float) -> None:
        packet = os.read(self.source, _MTU)
        if self.lost or self._bytes + len(packet) > _QUEUE:
            return
        now = time.monotonic()
        self._sent_at = max(self._sent_at, now) + len(packet) / rate
        self._due = max(self._due, self._sent_at + delay + random.uniform(0, jitter))
        heapq.heappush(self._waiting, (self._due, self._count, packet))
        self._bytes, self._count = self._bytes + len(packet), self._count + 1

    def deliver(self) -> float:
        """Deliver what is due; returns the seconds until more is."""
        while self._waiting:
            due, _, packet = self._waiting[0]
            if (left := due - time.monotonic()) > 0:
                return left
            heapq.heappop(self._waiting)
            self._bytes -= len(packet)
            if not self.lost:
                os.write(self._sink, packet)
                self.delivered += len(packet)
        return 60.0


class Link:
    """A cable between this process's namespace and a host.

    delay, jitter: seconds, added to each packet of both directions; packets keep their order.
    rate:          bytes a second in each direction
    address:       of the host
    """

    _numbers = itertools.count(1)

    def __init__(self, host: Host) -> None:
        number = next(self._numbers)
        self.delay, self.jitter, self.rate = 0.0, 0.0, float("inf")
        here, self.address = f"10.99.{number}.1", f"10.99.{number}.2"
        near, far = f"near{number}", f"far{number}"
        self._files = [_open_tun(name) for name in (near, far)]
        host.take(far)
        for ip, device, own, peer in (
            (_ip, near, here, self.address),
            (host.ip, far, self.address, here),
        ):
            ip("address", "add", own, "peer", peer, "dev", device)
            ip("link", "set", device, "mtu", str(_MTU), "up")
        self.up, self.down = _Direction(*self._files), _Direction(*reversed(self._files))
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._carry, name=f"link {number}")
        self._thread.start()

    def cut(self, up: bool = True, down: bool = True) -> None:
        """Lose all packets to the host (up) or from it (down) from now on, without a word."""
        self.up.lost, self.down.lost = up, down

    def repair(self) -> None:
        self.cut(up=False, down=False)

    @contextmanager
    def cut_for(self, seconds: float, up: bool = True, down: bool = True) -> Iterator[None]:
        """Cut it now, and repair it after some seconds, while the block runs or at its end."""
        self.cut(up, down)
        repair = threading.Timer(seconds, self.repair)
        repair.start()
        try:
            yield
        finally:
            repair.join()

    def _carry(self) -> None:
        ways = {way.source: way for way in (self.up, self.down)}
        poll = select.poll()
        for file in (*ways, self._wake):
            poll.register(file, select.POLLIN)
        while True:
            wait = min(way.deliver() for way in ways.values())
            for file, _ in poll.poll(wait * 1000):
                if file == self._wake:
                    return
                ways[file].receive(self.delay, self.jitter, self.rate)

    def close(self) -> None:
        os.write(self._woken, b"\0")
        self._thread.join()
        for file in (*self._files, self._wake, self._woken):
            os.close(file)


def _open_tun(name: str) -> int:
    file = os.open(_TUN, os.O_RDWR)
    fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return file


def raise_loopback() -> None:
    """Let this process reach itself."""
    _ip("link", "set", "lo", "up")
