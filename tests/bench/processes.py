"""The processes under measurement: a server, a bare echo, and what each of them costs."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_PORT = re.compile(r"[Ll]istening on [\d.]+:(\d+)|127.0.0.1:(\d+).*service is running")
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Process:
    """A child process with a gRPC port; `with` ends it. CPU and memory include its children."""

    def __init__(self, command: list[str], python: str = sys.executable, **environ: str) -> None:
        # To a file: a full pipe without a reader would block the process.
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, *command],
            cwd=ROOT,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=os.environ | environ,
        )
        self._log_read = 0
        self.port = self._find_port()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()

    def _find_port(self) -> int:
        while self._process.poll() is None:
            self._log.seek(0)
            found = _PORT.search(self._log.read())
            if found:
                return int(found[1] or found[2])
            time.sleep(0.05)
        self._log.seek(0)
        raise RuntimeError(self._log.read())

    def new_log(self) -> str:
        """What it has logged since the last call."""
        # pread: the file's position is shared with the child.
        data = os.pread(self._log.fileno(), 1 << 20, self._log_read)
        self._log_read += len(data)
        return data.decode(errors="replace")

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        return sum(sum(map(int, _stat(pid)[11:13])) for pid in self._family()) / _TICKS

    def resident_bytes(self) -> int:
        return sum(int(_stat(pid)[21]) for pid in self._family()) * _PAGE

    def _family(self) -> list[int]:
        """The process and all below it."""
        pids = [self._process.pid]
        for pid in pids:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
            pids += map(int, children.split())
        return pids


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from its third field on; the second is a name that may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def server(
    bundles: Path, *flags: str, workers: int | None = 1, python: str = sys.executable
) -> Process:
    """`latentd serve` on free ports. workers: None: as many as it starts without the flag."""
    ports = ("--port", "0", "--metrics-port", "0", "--lame-duck-seconds", "0")
    some = ("--workers", str(workers)) if workers else ()
    command = ["-m", "latentd", "serve", "--bundles", str(bundles), *some, *ports, *flags]
    return Process(command, python)


def echo(response_bytes: int) -> Process:
    """A bare grpc.aio server that answers every call with this many bytes."""
    return Process([str(HERE / "echo.py"), str(response_bytes)])


def mosec(python: str, bundle: Path) -> Process:
    """The graphs of a bundle behind mosec, run by the Python of an environment that has it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = {"MOSEC_PORT": port, "MOSEC_ADDRESS": "127.0.0.1", "BENCH_BUNDLE": str(bundle)}
    return Process([str(HERE / "mosec_server.py")], python, **settings)
