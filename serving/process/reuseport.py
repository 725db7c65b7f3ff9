"""Makes the kernel give the connections to a port to the workers in turns.

The workers' listening sockets are one group (SO_REUSEPORT), and for each new connection the kernel
chooses one of them. By default a hash of the addresses and ports chooses: of 4 connections to two
workers, all go to one worker in 1 of 8 cases, and 3 in every second case. A program for the group
chooses instead: it counts connections, and returns the count modulo the number of workers.

Classic BPF, which needs no rights, has no memory to count in, and nothing in a SYN alternates:
Linux (since 5.18) raises a client's next source port by a random even number up to 16. So the
program is eBPF. It needs Linux 5.12 and CAP_BPF, which root has outside of containers.

If the program returns a number that no socket has, because a worker is being restarted, the kernel
uses its hash. The program stays with the group while one socket is left.

Sources: man 7 socket (SO_ATTACH_REUSEPORT_EBPF), man 2 bpf, linux/bpf.h, and the kernel's
net/core/sock_reuseport.c.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

_ATTACH: Final = 52  # SO_ATTACH_REUSEPORT_EBPF
_SYSCALLS: Final = {"x86_64": 321, "aarch64": 280}  # bpf; glibc has no function for it
_MAP_CREATE, _PROG_LOAD = 0, 5  # the commands of bpf
_ARRAY, _SOCKET_FILTER = 2, 1  # types of a map and of a program
_RIGHTS: Final = 1 << 39 | 1 << 21  # CAP_BPF, and CAP_SYS_ADMIN that includes it


def take_turns(port: int, workers: int) -> str:
    """Give the port's connections to the workers in turns. This process listens on the port.

    Returns why Linux does not allow it, "" if it is done. Other systems are left as they are.
    """
    if sys.platform != "linux":
        return ""
    if platform.machine() not in _SYSCALLS:
        return f"turns are not implemented for {platform.machine()}"
    # Without the right, a strict sandbox might end the process for the attempt.
    if not _permitted():
        return "turns need the right CAP_BPF"
    try:
        program = _load(workers)
        try:
            for listening in _listening(port):
                with listening:
                    listening.setsockopt(socket.SOL_SOCKET, _ATTACH, program)
        finally:
            os.close(program)
    except OSError as error:  # an old kernel, or a container that forbids it
        return f"turns need eBPF, which failed with {error.strerror!r}"
    return ""


def _permitted() -> bool:
    """Whether this thread has a right that loading a program needs."""
    try:
        status = Path("/proc/thread-self/status").read_text()
        return bool(int(status.partition("CapEff:")[2].split()[0], 16) & _RIGHTS)
    except (OSError, IndexError):  # no /proc, or one that tells less
        return False


def _listening(port: int) -> list[socket.socket]:
    """Duplicates of this process's listening sockets on a port. gRPC, which opened them, does not
    show them."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        # Other threads open and close files meanwhile, and gRPC its sockets.
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                copy = os.dup(int(name))
                try:
                    one = socket.socket(fileno=copy)
                except OSError:  # it is another file's now
                    os.close(copy)
                    continue
                if _listens(one, port):
                    found.append(one)
                else:
                    one.close()
    return found


def _listens(one: socket.socket, port: int) -> bool:
    return (
        one.family in (socket.AF_INET, socket.AF_INET6)
        and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        and one.getsockname()[1] == port
    )


def _load(workers: int) -> int:
    """Load the program, with a counter of its own; returns its file descriptor. Raises OSError."""
    counter = _bpf(_MAP_CREATE, struct.pack("=5I", _ARRAY, 4, 4, 1, 0))
    try:
        code = b"".join(
            struct.pack("=BBhi", *instruction)
            for instruction in (
                # code, registers (source << 4 | destination), offset, constant
                (0x18, 0x20, 0, counter),  # r0 = the address of the counter,
                (0x00, 0x00, 0, 0),  # in two parts
                (0xB7, 0x01, 0, 1),  # r1 = 1
                (0xC3, 0x10, 0, 0x01),  # r1 = the counter, which grows by r1: atomic
                (0xBC, 0x10, 0, 0),  # r0 = r1
                (0x94, 0x00, 0, workers),  # r0 %= workers
                (0x95, 0x00, 0, 0),  # return r0
            )
        )
        text, license_ = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"Apache")
        addresses = ctypes.addressof(text), ctypes.addressof(license_)
        return _bpf(_PROG_LOAD, struct.pack("=2I2Q", _SOCKET_FILTER, len(code) // 8, *addresses))
    finally:
        os.close(counter)  # the program keeps it


def _bpf(command: int, attributes: bytes) -> int:
    """The system call; returns a file descriptor, which programs started later do not inherit."""
    library = ctypes.CDLL(None, use_errno=True)
    number = ctypes.c_long(_SYSCALLS[platform.machine()])
    size = ctypes.c_uint(len(attributes))
    found: int = library.syscall(number, ctypes.c_int(command), attributes, size)
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found
