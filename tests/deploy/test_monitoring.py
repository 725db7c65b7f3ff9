"""Alerts, records and the dashboard, against Prometheus itself: promtool, and a real one that
scrapes a real server under load."""

from __future__ import annotations

import contextlib
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

from serving.pb import vae_pb2 as pb
from serving.pb.vae_pb2_grpc import VaeServiceStub

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "deploy/k8s/components/monitoring/dashboard.json"
ALERTS = Path(__file__).with_name("alerts.yaml")
SECONDS = 60.0

VARIABLES = {"$namespace": "latentd", "$pod": ".*", "$__rate_interval": "15s"}


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


def test_the_rules_are_rules(rules, tmp_path):
    path = write_rules(tmp_path, rules)
    subprocess.run([tool("promtool"), "check", "rules", path], check=True)


def test_every_alert_is_heard_when_it_should_be_and_not_before(rules, tmp_path):
    alerts = {r["alert"] for g in rules["groups"] for r in g["rules"] if "alert" in r}
    assert set(re.findall(r"- name: (\w+)", ALERTS.read_text())) == alerts
    write_rules(tmp_path, rules)
    shutil.copy(ALERTS, tmp_path)
    ran = subprocess.run(
        [tool("promtool"), "test", "rules", tmp_path / ALERTS.name], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr + ran.stdout


class Life:
    """A server of its own process, and calls to it."""

    def __init__(self, folder: Path, bundles: Path, workers: int) -> None:
        self._log = (folder / f"server-{workers}.log").open("w+")
        flags = ["--bundles", str(bundles), "--workers", str(workers), "--provider", "cpu"]
        # So few that some of what waits is refused.
        limits = ["--queue-rows", "64", "--reload-seconds", "0.5", "--lame-duck-seconds", "0"]
        ports = ["--port", "0", "--metrics-port", "0"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "serving", "serve", *flags, *limits, *ports],
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


@pytest.fixture
def bundles(publish_toy, tmp_path) -> Path:
    """Two versions that are served and one that is refused."""
    root = tmp_path / "bundles"
    for levels in (255, 127, 63):
        newest = publish_toy(root, levels=levels)
    (newest / "decoder.onnx").write_bytes(b"half of it")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_the_page_of_metrics_is_as_prometheus_wants_it(bundles, tmp_path, workers):
    promtool = tool("promtool")
    life = Life(tmp_path, bundles, workers)
    try:
        life.call(1)
        ran = subprocess.run([promtool, "check", "metrics"], input=life.page(), capture_output=True)
    finally:
        life.stop()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == b""


class Prometheus:
    """A Prometheus of its own that scrapes one server each second, as the pod `a`."""

    def __init__(self, folder: Path, rules: dict[str, Any], target: str) -> None:
        write_rules(folder, rules, "1s")
        labels = {"namespace": "latentd", "pod": "a", "accelerator": "cpu"}
        job = {"job_name": "latentd", "static_configs": [{"targets": [target], "labels": labels}]}
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [job],
        }
        file = folder / "prometheus.yaml"
        file.write_text(json.dumps(configuration))
        subprocess.run([tool("promtool"), "check", "config", file], check=True)
        self._log = (folder / "prometheus.log").open("w+")
        self._process = subprocess.Popen(
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
        query = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(f"http://{self.address}/api/v1/query?{query}") as response:
                result: list[dict[str, Any]] = json.load(response)["data"]["result"]
        except urllib.error.HTTPError as error:
            if error.code == 503:  # it still starts
                return []
            raise AssertionError(f"{expression}: {error.read().decode()}") from None
        return [series for series in result if series["value"][1] != "NaN"]

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(SECONDS)
        self._log.close()


def panels() -> list[tuple[str, str]]:
    """Every query of the dashboard, with its panel's title."""
    found = []
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            found.append((panel["title"], expression))
    return found


@pytest.mark.slow
def test_every_panel_and_record_has_data_under_load(bundles, rules, tmp_path):
    tool("prometheus")
    life = Life(tmp_path, bundles, 2)
    prometheus = Prometheus(tmp_path, rules, life.metrics)
    try:
        wanted = panels()
        wanted += [
            ("record", rule["record"])
            for group in rules["groups"]
            for rule in group["rules"]
            if "record" in rule
        ]
        assert len(wanted) > 20
        missing = wanted

        def all_there() -> bool:
            nonlocal missing
            missing = [(title, text) for title, text in missing if not prometheus.query(text)]
            return not missing

        with under_load(life):
            try:
                until(all_there)
            except AssertionError:
                pytest.fail(f"no data: {missing}")
            # What it says is so: more than can be queued was asked for, and one bundle is bad.
            assert float(prometheus.query("latentd:shed:ratio_rate5m")[0]["value"][1]) > 0.01
            until(lambda: prometheus.query('ALERTS{alertname="LatentdReloadRefused"}'))
            until(lambda: prometheus.query('ALERTS{alertname="LatentdShedding"}'))
            assert not prometheus.query('ALERTS{alertname=~"LatentdDown|LatentdOnCpu"}')
            assert float(prometheus.query("sum(latentd_workers)")[0]["value"][1]) == 2
    finally:
        prometheus.stop()
        life.stop()
