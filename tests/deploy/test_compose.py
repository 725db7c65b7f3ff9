"""deploy/compose.yaml: what it says, and run by podman-compose (`make test-compose`)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentd import settings
from latentd.client import Client
from tests.support.prometheus_run import DASHBOARD, ROOT, tool, until
from tests.support.server import free_port

yaml = pytest.importorskip("yaml", reason="PyYAML is not here: make install brings it")

FILE = ROOT / "deploy/compose.yaml"
IMAGES = ("LATENTD_IMAGE", "PROMETHEUS_IMAGE")


def read(name: str):
    return yaml.safe_load((FILE.parent / name).read_text())


@pytest.fixture(scope="module")
def services():
    return read("compose.yaml")["services"]


def mounted(service) -> dict[str, Path]:
    """The files of this repository, by their path in the container."""
    found = {}
    for volume in service["volumes"]:
        source, target, mode = re.fullmatch(r"(.+):(/[^:]+):(\w+)", volume).groups()
        assert mode == "ro"
        found[target] = FILE.parent / source
    return found


def test_server_has_the_ports_and_settings_that_it_needs(services):
    server = services["server"]
    given = server["environment"]
    assert not settings.unknown_env_vars(given)
    chosen = settings.load_settings({}, given | {"LATENTD_HOST": "0.0.0.0"})
    ports = {chosen.port, chosen.http_port, chosen.metrics_port}
    assert set(server["ports"]) == {f"127.0.0.1:{port}:{port}" for port in ports}
    assert list(mounted(server)) == ["/models"]
    build = server["build"]
    dockerfile = FILE.parent / build["context"] / build["dockerfile"]
    assert f" AS {build['target']}\n" in dockerfile.read_text()
    assert server["read_only"]
    assert server["cap_drop"] == ["ALL"]


def test_every_port_is_of_this_machine_only(services):
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_prometheus_gets_the_shipped_rules(services, rules, tmp_path):
    prometheus = services["prometheus"]
    files = mounted(prometheus)
    command = prometheus["entrypoint"][-1].splitlines()[0].replace("$$", "$")
    made = tmp_path / "rules.yaml"
    command = command.replace("/tmp/rules.yaml", str(made))
    command = command.replace("/etc/prometheus/rule.yaml", str(files["/etc/prometheus/rule.yaml"]))
    subprocess.run(["sh", "-c", command], check=True)
    assert yaml.safe_load(made.read_text()) == rules
    config = read("compose/prometheus.yaml")
    assert config["rule_files"] == ["/tmp/rules.yaml"]
    (scraped,) = config["scrape_configs"]
    assert scraped["job_name"] == "latentd"  # LatentdDown asks for it
    (static,) = scraped["static_configs"]
    assert static["targets"] == [f"server:{settings.Settings().metrics_port}"]
    file = tmp_path / "prometheus.yaml"
    file.write_text(json.dumps(config | {"rule_files": [str(made)]}))
    subprocess.run([tool("promtool"), "check", "config", file], check=True)


def test_grafana_gets_the_shipped_dashboard(services):
    files = mounted(services["grafana"])
    assert all(path.is_file() for path in files.values())
    (provider,) = read("compose/dashboards.yaml")["providers"]
    shown = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(shown).parent == Path(provider["options"]["path"])
    assert files[shown].samefile(DASHBOARD)
    (source,) = read("compose/datasources.yaml")["datasources"]
    asked = json.loads(DASHBOARD.read_text())["templating"]["list"][0]
    assert (asked["type"], asked["query"]) == ("datasource", source["type"])
    assert source["url"] == f"http://prometheus:{services['prometheus']['ports'][0][-4:]}"


def get(url: str) -> bytes:
    """What is answered; nothing until something listens."""
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return response.read()
    except (urllib.error.URLError, ConnectionError):
        return b""


@pytest.fixture
def up(publish_toy, tmp_path) -> Iterator[dict[int, int]]:
    """The server and Prometheus run; gives free ports for those of the file.

    Grafana is left out: its image may not be here.
    """
    compose = shutil.which("podman-compose")
    if compose is None or not all(os.environ.get(name) for name in IMAGES):
        pytest.skip("make test-compose runs this")
    models = Path(tempfile.mkdtemp(prefix="latentd-models-"))  # where other users can look
    publish_toy(models)
    for path in (models, *models.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    ports: dict[int, int] = {}

    def moved(found: re.Match[str]) -> str:
        ports[int(found[1])] = free_port()
        return f"127.0.0.1:{ports[int(found[1])]}:"

    text = re.sub(r"127\.0\.0\.1:(\d+):", moved, FILE.read_text())
    file = tmp_path / FILE.name
    file.write_text(text.replace("- ./", f"- {FILE.parent}/"))
    project = f"latentd-test-{os.getpid()}"
    command = [compose, "-p", project, "-f", file]
    environment = os.environ | {"BUNDLES": str(models)}
    try:
        start = ["up", "--detach", "--no-build", "server", "prometheus"]
        subprocess.run([*command, *start], env=environment, check=True)
        yield ports
    finally:
        down = [*command, "down", "--volumes"]
        subprocess.run(down, env=environment, check=True)
        shutil.rmtree(models)
    for kind in (["ps", "--all"], ["network", "ls"], ["volume", "ls"], ["pod", "ls"]):
        listed = ["podman", *kind, "--quiet", "--filter", f"name={project}"]
        ran = subprocess.run(listed, capture_output=True, text=True, check=True)
        assert not ran.stdout, kind


def test_compose_serves_and_watches(up, rules):
    metrics, http, watched = (f"http://127.0.0.1:{up[port]}" for port in (9464, 8080, 9090))
    until(lambda: get(f"{metrics}/readyz") == b"SERVING\n")
    with Client(f"127.0.0.1:{up[50051]}", timeout=60) as client:
        assert client.sample(2, seed=7)
    assert b"<html" in get(f"{http}/explore/toy")

    def ask(way: str) -> dict[str, Any]:
        return json.loads(get(f"{watched}/api/v1/{way}") or b"{}").get("data", {})

    until(lambda: [s["value"][1] for s in ask("query?query=up").get("result", [])] == ["1"])
    names = {rule["name"] for group in ask("rules")["groups"] for rule in group["rules"]}
    wanted = {r.get("alert") or r["record"] for g in rules["groups"] for r in g["rules"]}
    assert names == wanted
