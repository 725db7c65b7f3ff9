"""Servers under load and a Prometheus that scrapes them, each a process of its own."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from tests.support.processes import StartProcess

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "deploy/k8s/alerts/dashboard.json"
SECONDS = 120.0

VARIABLES = {"$namespace": "latentd", "$job": "latentd", "$pod": ".*", "$__rate_interval": "15s"}
_numbers = itertools.count(1)


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not here: apt-get install prometheus")
    return path


def write_rules(folder: Path, rules: dict[str, Any], interval: str = "30s") -> Path:
    """The rules as a file for Prometheus (which reads JSON, for that is YAML)."""
    groups = [group | {"interval": interval} for group in rules["groups"]]
    path = folder / "rules.yaml"
    path.write_text(json.dumps({"groups": groups}))
    return path


class Life:
    """A server of its own process, and calls to it."""

    def __init__(
        self,
        start: StartProcess,
        folder: Path,
        bundles: Path,
        workers: int,
        queue_rows: int = 64,
    ) -> None:
        self._log = (folder / f"server-{next(_numbers)}.log").open("w+")
        flags = ["--bundles", str(bundles), "--workers", str(workers), "--provider", "cpu"]
        # So few rows that some of what comes is refused.
        limits = [
            "--queue-rows",
            str(queue_rows),
            "--poll-seconds",
            "0.5",
            "--lame-duck-seconds",
            "0",
        ]
        ports = ["--port", "0", "--metrics-port", "0"]
        self._process = start(
            [sys.executable, "-m", "latentd", "serve", *flags, *limits, *ports],
            cwd=ROOT,
            stderr=self._log,
        )
        said = until(
            lambda: re.search(r"Listening on (\S+), metrics on http://(\S+)/m", self.log())
        )
        self.target, self.metrics = said[1], said[2]

    def log(self) -> str:
        assert self._process.poll() is None, "the server ended"
        return Path(self._log.name).read_text()

    def page(self) -> bytes:
        with urllib.request.urlopen(f"http://{self.metrics}/metrics") as response:
            return response.read()

    def call(self, number: int) -> None:
        """One call of each kind: answered, refused, given up."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self.target, options) as channel:
            stub = VaeServiceStub(channel)
            for _ in range(20):
                calls = [
                    stub.Sample.future(pb.SampleRequest(count=rows, seed=number))
                    for rows in (1, 2, 60, 60, 4000, 60)
                ]
                stub.Sample.future(pb.SampleRequest(count=4000, seed=number)).cancel()
                with contextlib.suppress(grpc.RpcError):
                    sample = stub.Sample(pb.SampleRequest(count=2, seed=number))
                    stub.Encode(pb.EncodeRequest(x=sample.x))
                for call in calls:
                    call.exception()
                calls[-1].cancel()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        assert self._process.wait(SECONDS) == 0
        self._log.close()


def until(look: Any) -> Any:
    """What `look` gives once it gives something; what another process does is polled."""
    end = time.monotonic() + SECONDS
    while not (found := look()):
        assert time.monotonic() < end, "not in time"
        threading.Event().wait(0.1)
    return found


@contextlib.contextmanager
def under_load(life: Life) -> Iterator[None]:
    done = threading.Event()

    def load(number: int) -> None:
        while not done.is_set():
            life.call(number)

    with ThreadPoolExecutor(4) as callers:
        running = [callers.submit(load, number) for number in range(4)]
        try:
            yield
        finally:
            done.set()
        for one in running:
            one.result()


class Prometheus:
    """A Prometheus of its own that scrapes servers each second.

    targets: HOST:PORT of each page of metrics, by the name of its pod
    """

    def __init__(
        self, start: StartProcess, folder: Path, rules: dict[str, Any], targets: dict[str, str]
    ) -> None:
        write_rules(folder, rules, "1s")
        labels = {"namespace": "latentd", "accelerator": "cpu"}
        static = [
            {"targets": [target], "labels": labels | {"pod": pod}}
            for pod, target in targets.items()
        ]
        job = {"job_name": "latentd", "static_configs": static}
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [job],
        }
        file = folder / "prometheus.yaml"
        file.write_text(json.dumps(configuration))
        subprocess.run([tool("promtool"), "check", "config", file], check=True)
        self._log = (folder / "prometheus.log").open("w+")
        self._process = start(
            [
                tool("prometheus"),
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stderr=self._log,
        )
        self.address = until(self._listening)

    def _listening(self) -> str:
        # It does not say which port it was given.
        inodes = {
            link.split("[")[1][:-1]
            for descriptor in Path(f"/proc/{self._process.pid}/fd").iterdir()
            if (link := os.readlink(descriptor)).startswith("socket:")
        }
        for line in Path(f"/proc/{self._process.pid}/net/tcp").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                return f"127.0.0.1:{int(words[1].split(':')[1], 16)}"
        return ""

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector, of numbers only."""
        found = self._ask("query", query=expression)
        return [series for series in found if series["value"][1] != "NaN"]

    def query_range(self, expression: str, start: float, end: float) -> list[dict[str, Any]]:
        """Each series with its values in every second from `start` to `end`, UNIX times."""
        return self._ask("query_range", query=expression, start=start, end=end, step=1)

    def _ask(self, way: str, **asked: object) -> list[dict[str, Any]]:
        url = f"http://{self.address}/api/v1/{way}?{urllib.parse.urlencode(asked)}"
        try:
            with urllib.request.urlopen(url) as response:
                result: list[dict[str, Any]] = json.load(response)["data"]["result"]
        except urllib.error.HTTPError as error:
            if error.code == 503:  # it still starts
                return []
            raise AssertionError(f"{asked}: {error.read().decode()}") from None
        return result

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(SECONDS)
        self._log.close()


def panels() -> list[tuple[str, str]]:
    """Every query of the dashboard, with its panel's title."""
    return [
        (panel["title"], filled(target["expr"]))
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for target in panel["targets"]
    ]


def filled(expression: str) -> str:
    """A query of the dashboard with its variables' values."""
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression
