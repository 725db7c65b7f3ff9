"""Alerts, records and the dashboard, against Prometheus itself: promtool, and a real one that
scrapes a real server under load."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.prometheus_run import (
    ROOT,
    Life,
    Prometheus,
    panels,
    tool,
    under_load,
    until,
    write_rules,
)

COMPONENTS = ROOT / "deploy/k8s/components"
ALERTS = Path(__file__).with_name("alerts.yaml")


def test_rules_are_valid(all_rules, tmp_path):
    path = write_rules(tmp_path, all_rules)
    subprocess.run([tool("promtool"), "check", "rules", path], check=True)


def test_alerts_fire_when_they_should(all_rules, tmp_path):
    alerts = {r["alert"] for g in all_rules["groups"] for r in g["rules"] if "alert" in r}
    assert set(re.findall(r"- name: (\w+)", ALERTS.read_text())) == alerts
    write_rules(tmp_path, all_rules)
    shutil.copy(ALERTS, tmp_path)
    ran = subprocess.run(
        [tool("promtool"), "test", "rules", tmp_path / ALERTS.name], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr + ran.stdout


@pytest.fixture
def bundles(publish_toy, tmp_path) -> Path:
    """Two served versions and one rejected."""
    root = tmp_path / "bundles"
    for levels in (255, 127, 63):
        newest = publish_toy(root, levels=levels)
    (newest / "decoder.onnx").write_bytes(b"half of it")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_metrics_page_is_valid(start_process, bundles, tmp_path, workers):
    promtool = tool("promtool")
    life = Life(start_process, tmp_path, bundles, workers)
    try:
        life.call(1)
        ran = subprocess.run([promtool, "check", "metrics"], input=life.page(), capture_output=True)
    finally:
        life.stop()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == b""


def autoscaling() -> list[str]:
    """What KEDA asks, and what prometheus-adapter makes of its rules for one pod."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not here: make install brings it")
    keda = yaml.safe_load((COMPONENTS / "autoscaling-keda/scaledobject.yaml").read_text())
    triggers = [t for t in keda["spec"]["triggers"] if t["type"] == "prometheus"]
    asked = [trigger["metadata"]["query"] for trigger in triggers]
    adapter = yaml.safe_load((COMPONENTS / "autoscaling/adapter-rules.yaml").read_text())
    for rule in adapter["rules"]["custom"]:
        filled = {
            "<<.Series>>": rule["seriesQuery"].partition("{")[0],
            "<<.LabelMatchers>>": 'namespace="latentd",pod=~"a"',
            "<<.GroupBy>>": "pod",
        }
        query = rule["metricsQuery"]
        for name, text in filled.items():
            query = query.replace(name, text)
        asked.append(query)
    assert len(asked) == 4
    return asked


@pytest.mark.slow
def test_panels_and_records_have_data_under_load(start_process, bundles, rules, tmp_path):
    tool("prometheus")
    life = Life(start_process, tmp_path, bundles, 2)
    prometheus = Prometheus(start_process, tmp_path, rules, {"a": life.metrics})
    try:
        wanted = panels()
        wanted += [
            ("record", rule["record"])
            for group in rules["groups"]
            for rule in group["rules"]
            if "record" in rule
        ]
        assert len(wanted) > 20
        wanted += [("autoscaling", query) for query in autoscaling()]
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
            until(lambda: prometheus.query('ALERTS{alertname="LatentdReloadRejected"}'))
            until(lambda: prometheus.query('ALERTS{alertname="LatentdShedding"}'))
            assert not prometheus.query('ALERTS{alertname=~"LatentdDown|LatentdOnCpu"}')
            assert float(prometheus.query("sum(latentd_workers)")[0]["value"][1]) == 2
    finally:
        prometheus.stop()
        life.stop()
