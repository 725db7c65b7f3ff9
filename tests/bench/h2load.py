"""Load from h2load, nghttp2's generator: a stopwatch that is not ours.

It sends one request again and again. It does not read gRPC's status, which comes in trailers, so
`grpc` makes one call by grpcio first and raises what that raises.
"""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from grpc import insecure_channel

SERVICE = "/vae.v1.VaeService/"


class Callers(NamedTuple):
    """How many calls are in flight: so many streams on each connection."""

    connections: int
    streams: int

    def __str__(self) -> str:
        return f"{self.connections} x {self.streams}"


@dataclass(frozen=True)
class Result:
    """rate: calls a second; median: seconds that a call takes, of all calls."""

    rate: float
    median: float


def require() -> None:
    """End this process, and say how to install h2load, if it is not there."""
    if not shutil.which("h2load"):
        sys.exit("h2load is not here: install Debian's nghttp2-client.")


def for_seconds(seconds: float) -> tuple[str, ...]:
    """h2load's flags for a run of so many seconds, after one second to warm up."""
    return "-D", f"{seconds:g}", "--warm-up-time", "1"


class Load:
    """A run of h2load, which begins at once. length: its flags for the duration."""

    def __init__(
        self, url: str, body: bytes, callers: Callers, length: tuple[str, ...], *flags: str
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        sent, self._log = (Path(self._folder.name) / name for name in ("body", "log"))
        sent.write_bytes(body)
        self._process = subprocess.Popen(
            [
                *("h2load", "-t", "1", "-d", str(sent), "-w", "24", "-W", "24", *length),
                *("-c", str(callers.connections), "-m", str(callers.streams)),
                *("--log-file", str(self._log), *flags, url),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )

    def result(self) -> Result:
        """Wait for the end. Raises RuntimeError if a call failed or none was counted."""
        output, _ = self._process.communicate()
        calls = [line.split("\t") for line in self._log.read_text().splitlines()]
        self._folder.cleanup()
        rate = re.search(r"finished in [^,]*, ([\d.]+) req/s", output)
        if not rate or not float(rate[1]) or any(status != "200" for _, status, *_ in calls):
            raise RuntimeError(output)
        return Result(float(rate[1]), statistics.median(int(us) for _, _, us, *_ in calls) / 1e6)


def grpc(port: int, path: str, message: bytes, callers: Callers, length: tuple[str, ...]) -> Load:
    """Calls of a unary method. Raises grpc.RpcError if the first call fails."""
    with insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary(path)
        call(message, timeout=30)
    body = b"\0" + len(message).to_bytes(4, "big") + message
    headers = ("-H", "content-type: application/grpc", "-H", "te: trailers")
    return Load(f"http://127.0.0.1:{port}{path}", body, callers, length, *headers)


def http(port: int, path: str, body: bytes, connections: int, length: tuple[str, ...]) -> Load:
    """Calls over HTTP/1.1, one at a time on each connection."""
    return Load(f"http://127.0.0.1:{port}{path}", body, Callers(connections, 1), length, "--h1")
