"""A server as its operators meet it: a process of its own."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from latentd import bundle
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from tests.support.processes import StartProcess, process_starter
from tests.support.slow_engine import SLOW, slow_graph

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120  # only broken code makes a test wait so long
ROOM = 96 << 20  # bytes that a watched server may take beyond what it had, whatever is sent


class Process:
    """`latentd serve` on free ports; its log is read as it comes."""

    def __init__(self, start: StartProcess, *flags: str, **environment: str) -> None:
        command = [sys.executable, "-m", "latentd", "serve", "--port", "0", "--metrics-port", "0"]
        self._process = start(
            [*command, *flags],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        self.log: list[str] = []
        self._grown = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._grown:
                self.log.append(line)
                self._grown.notify_all()
        with self._grown:
            self.log.append("")  # the end
            self._grown.notify_all()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first log line, past or to come, that matches."""

        def find() -> re.Match[str] | None:
            return next((m for line in self.log if (m := re.search(pattern, line))), None)

        with self._grown:
            done = self._grown.wait_for(
                lambda: find() is not None or self.log[-1:] == [""], timeout=SECONDS
            )
            found = find()
        assert done, f"no {pattern!r} in time"
        assert found, "".join(self.log)
        return found

    def answer(self) -> None:
        """See a good call over a connection of its own answered, and health, each in time."""
        target, _ = self.ready()
        with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            sample = VaeServiceStub(channel).Sample
            response = sample(
                pb.SampleRequest(count=1, seed=7), timeout=SECONDS, wait_for_ready=True
            )
            assert len(response.x.tensor.data) == 16
            check = health_pb2_grpc.HealthStub(channel).Check
            status = check(health_pb2.HealthCheckRequest(), timeout=SECONDS).status
            assert status == health_pb2.HealthCheckResponse.SERVING

    def ready(self) -> tuple[str, str]:
        """Targets for gRPC and for metrics, once it serves."""
        match = self.wait_for(r"Listening on (\S+), metrics on (\S+)\.")
        return match[1], match[2]

    def value(self, metric: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels, as its page gives them now."""
        with urllib.request.urlopen(self.ready()[1]) as response:
            page = response.read().decode()
        assert f"# TYPE {metric} " in page, f"no metric {metric}"
        families = text_string_to_metric_families(page)
        samples = (sample for family in families for sample in family.samples)
        wanted = labels.items()
        return sum(s.value for s in samples if s.name == metric and wanted <= s.labels.items())

    @property
    def pid(self) -> int:
        return self._process.pid

    def memory(self, of: str) -> int:
        """Bytes of the process without its children; of: VmRSS, now, or VmHWM, at the most."""
        found = re.search(rf"{of}:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found
        return int(found[1]) * 1024

    def forget_peak(self) -> None:
        """Let VmHWM begin anew."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def exit_status(self) -> int:
        status = self._process.wait(SECONDS)
        self._reader.join()
        return status

    def kill(self) -> None:
        self._process.kill()
        self.exit_status()
        assert self._process.stderr is not None
        self._process.stderr.close()


Serve = Callable[..., Process]


@contextmanager
def server_processes() -> Iterator[Serve]:
    started: list[Process] = []

    with process_starter() as start:

        def serve(*flags: str, **environment: str) -> Process:
            started.append(Process(start, *flags, **environment))
            return started[-1]

        yield serve
        for process in started:
            with suppress(ProcessLookupError):  # a worker whose run hangs outlives its supervisor
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers: flags and environment variables in, a Process out; all end with the test."""
    with server_processes() as start:
        yield start


@pytest.fixture(scope="module")
def module_serve() -> Iterator[Serve]:
    """As serve, for servers that a module's tests share."""
    with server_processes() as start:
        yield start


@pytest.fixture
def publish_slow(publish_toy, toy_bundles) -> Callable[..., Path]:
    """As publish_toy, with a decoder that goes so many rounds for a latent such as SLOW."""
    (version,) = (toy_bundles / "toy").iterdir()
    decoder = bundle.load(version).files[bundle.DECODER]

    def publish(root: Path, rounds: int, **replaced: bytes) -> Path:
        return publish_toy(root, decoder_onnx=slow_graph(decoder, rounds), **replaced)

    return publish


@pytest.fixture
def slow_golden(toy_bundles) -> bytes:
    """Golden vectors whose latents make each batch slow."""
    (golden_npz,) = toy_bundles.glob(f"toy/*/{bundle.GOLDEN}")
    with np.load(golden_npz) as file:
        golden = dict(file)
    golden["z"] = np.repeat(SLOW, len(golden["z"]), axis=0)
    golden["decoded_x"] = np.full_like(golden["decoded_x"], 255)
    golden["params"] = golden["z"].reshape(golden["params"].shape)
    logits = golden["params"][:, 0].astype(np.float64)
    x = np.resize(golden["x"], logits.shape) / 255
    golden["log_likelihood"] = (x * logits - np.logaddexp(0, logits)).sum(axis=(1, 2))
    data = io.BytesIO()
    np.savez(data, **golden)
    return data.getvalue()


@pytest.fixture(scope="module", params=["core", "aio"])
def watched(request, module_serve, toy_bundles) -> Process:
    """A server of one worker that is told no good: `port` sees what that does to it."""
    flags = ("--workers", "1", "--listener", request.param, "--max-message-mib", "4")
    started = module_serve("--bundles", str(toy_bundles), *flags)
    started.ready()
    return started


@pytest.fixture
def port(watched) -> Iterator[int]:
    """Where `watched` listens; afterwards it has to be as it was."""
    target, _ = watched.ready()
    watched.answer()
    watched.forget_peak()
    before = watched.memory("VmHWM")
    said = len(watched.log)
    yield int(target.rpartition(":")[2])
    watched.answer()
    assert watched.memory("VmHWM") - before < ROOM
    # Nor a line of gRPC's own (E1127 20:29:13...), of which any caller could make millions.
    ours = [line for line in watched.log[said:] if re.search(r"Traceback|^[A-Z]\d{4} \d\d:", line)]
    assert not ours, "".join(watched.log[said:])
