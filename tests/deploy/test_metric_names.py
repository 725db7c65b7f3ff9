"""Queries use metrics that exist, and every alert has a runbook."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from latentd.metrics import Metrics, restarts

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "deploy/k8s"
COMPONENTS = K8S / "components"


def counted():
    """The names of all metrics."""
    registry = CollectorRegistry()
    Metrics(registry)
    restarts(registry)
    names = set()
    for family in registry.collect():
        endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
        names |= {family.name + ending for ending in endings.get(family.type, [""])}
    return names


def test_queried_metrics_exist():
    sources = [
        K8S / "alerts/rules.yaml",
        K8S / "alerts/dashboard.json",
        COMPONENTS / "autoscaling/autoscaler.yaml",
        COMPONENTS / "autoscaling/adapter-rules.yaml",
        COMPONENTS / "autoscaling-keda/scaledobject.yaml",
        ROOT / "deploy/README.md",
    ]
    adapter = (COMPONENTS / "autoscaling/adapter-rules.yaml").read_text()
    adapted = set(re.findall(r"as: (latentd_[a-z_]+)", adapter))
    for path in sources:
        asked = set(re.findall(r"\blatentd_[a-z_]+[a-z]\b", path.read_text()))
        assert asked, path
        assert asked <= counted() | adapted, path


def test_queried_records_exist(rules):
    made = {
        rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule
    }
    texts = [json.dumps(rules), (K8S / "alerts/dashboard.json").read_text()]
    asked = {name for text in texts for name in re.findall(r"\blatentd:[a-z0-9_:]+\b", text)}
    assert asked == made


def test_rules_keep_instances_apart(rules):
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        grouped = re.findall(r"\b(?:by|on) \(([^)]+)\)", rule["expr"])
        assert all(labels.startswith("namespace, job") for labels in grouped), rule
        aggregated = re.search(r"\b(?:sum|max|min|avg|count)\b", rule["expr"])
        assert grouped or not aggregated, rule


def test_dashboard_keeps_instances_apart():
    dashboard = json.loads((K8S / "alerts/dashboard.json").read_text())
    chosen = [each["name"] for each in dashboard["templating"]["list"]]
    assert chosen == ["source", "namespace", "job", "pod"]
    for panel in dashboard["panels"]:
        for query in (target["expr"] for target in panel["targets"]):
            metrics = re.findall(r"\b(?:latentd[:_][\w:]+|up)\b", query)
            apart = re.findall(r'\{namespace="\$namespace", job="\$job"', query)
            assert query == "latentd:objective:p99_seconds" or len(apart) == len(metrics), query


def test_alerts_have_a_runbook(all_rules):
    readme = (ROOT / "deploy/README.md").read_text()
    headings = {h.lower() for h in re.findall(r"^#+ (\w+)$", readme, re.M)}
    alerts = [r for group in all_rules["groups"] for r in group["rules"] if "alert" in r]
    assert len(alerts) >= 7
    for alert in alerts:
        page = alert["annotations"]["runbook"]
        assert page == f"deploy/README.md#{alert['alert'].lower()}"
        assert alert["alert"].lower() in headings, alert["alert"]
        assert alert["annotations"]["summary"].endswith(".")
        assert alert["labels"]["severity"] in ("warning", "critical")
