"""The Helm chart renders what kustomize builds."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.helm_cases import CASES, EVERYTHING
from tests.support.helm import (
    ARCHIVE,
    CHART,
    Documents,
    Values,
    run_helm,
    template,
    with_archive,
)
from tests.support.manifests import one, pod_of

yaml = pytest.importorskip("yaml", reason="PyYAML is not here: make install brings it")

K8S = Path(__file__).resolve().parents[2] / "deploy/k8s"
INSTANCE_LABELS = ("app.kubernetes.io/name", "app.kubernetes.io/instance")
# What may differ, and nothing else may:
HELMS = re.compile(r"helm\.sh/|app\.kubernetes\.io/(version|managed-by)$")
"""Labels and annotations of helm's own."""
KUSTOMIZES = re.compile(r"checkov\.io/|latentd/certificate$")
"""Annotations for the linter that `make audit-manifests` runs, and for deploy/k8s/instance."""
HASH = re.compile(r"(latentd-(?:settings|bundles))-[a-z0-9]{10}$")
"""The end that kustomize gives the names of ConfigMaps."""


def normal(node: Any) -> Any:
    """The document without what may differ."""
    if isinstance(node, str):
        return HASH.sub(r"\1", node)
    if isinstance(node, list):
        return [normal(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {key: normal(value) for key, value in node.items()}
    for name in {"labels", "annotations"} & kept.keys():
        pairs = kept.pop(name).items()
        pairs = {k: v for k, v in pairs if not HELMS.match(k) and not KUSTOMIZES.match(k)}
        if pairs:
            kept[name] = pairs
    for name in {"volumes", "volumeMounts"} & kept.keys():  # they have no order
        kept[name] = sorted(kept[name], key=lambda item: item["name"])
    # What a label must be, in the form that kustomize does not add its own labels to.
    for item in kept.pop("matchExpressions", []):
        if item["operator"] == "In" and len(item["values"]) == 1:
            kept.setdefault("matchLabels", {})[item["key"]] = item["values"][0]
        else:
            kept.setdefault("matchExpressions", []).append(item)
    # kustomize leaves a list empty whose items are deleted.
    return {key: value for key, value in kept.items() if value != []}


def resolved(documents: Documents) -> Documents:
    """With the variables of ConfigMaps in the pod, where the chart has them."""
    maps = {d["metadata"]["name"]: d["data"] for d in documents if d["kind"] == "ConfigMap"}
    pod = pod_of(documents)
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        given = container.setdefault("env", [])
        for source in container.pop("envFrom", []):
            data = maps[source["configMapRef"]["name"]]
            given += [{"name": name, "value": value} for name, value in data.items()]
        for item in given:
            if key := item.pop("valueFrom", {}).get("configMapKeyRef"):
                item["value"] = maps[key["name"]].pop(key["key"])
        given.sort(key=lambda item: item["name"])
    return documents


def used(documents: Documents) -> Documents:
    """Without ConfigMaps that no pod mounts: kustomize cannot take back what a base generates."""
    mounted = str([d for d in documents if d["kind"] == "Deployment"])
    return [d for d in documents if d["kind"] != "ConfigMap" or d["metadata"]["name"] in mounted]


def of_no_instance(document: Values) -> Values:
    """Without the labels that helm gives also to what is made apart in kustomize."""
    for name in INSTANCE_LABELS:
        del document["metadata"]["labels"][name]
    return document


def lines(documents: Iterable[Values]) -> list[str]:
    """The documents as text, in one order."""
    texts = [
        f"# {document['kind']} {document['metadata']['name']}\n" + yaml.safe_dump(document)
        for document in map(normal, documents)
    ]
    return "---\n".join(sorted(texts)).splitlines()


def compare(built: Iterable[Values], rendered: Iterable[Values]) -> None:
    """Fail with what differs."""
    differences = difflib.unified_diff(
        lines(built), lines(rendered), "kustomize", "helm", "", "", 8, ""
    )
    if text := "\n".join(differences):
        pytest.fail(text, pytrace=False)


def test_every_component_is_compared():
    compared = {name for case in CASES.values() for name in case.components}
    jobs = {"batch-job", "training-job"}  # they run once, so they are no part of a release
    assert compared | jobs == {folder.name for folder in (K8S / "components").iterdir()}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_chart_renders_what_kustomize_builds(kustomize, case):
    built = kustomize(it=case.kustomization)
    rendered = template(with_archive(case.values), case.release)
    compare(used(resolved(built)), resolved(rendered))


def test_shared_alerts_are_those_of_kustomize(kustomize):
    without = template(with_archive({}))
    rendered = template(with_archive({"alerts": {"enabled": True}}))
    shared = [d for d in rendered if d["metadata"]["namespace"] == "monitoring"]
    compare(without, [d for d in rendered if d not in shared])
    compare(kustomize(it={"resources": ["latentd/deploy/k8s/alerts"]}), map(of_no_instance, shared))


def test_claim_is_that_of_kustomize_and_survives_the_release():
    documents = template({"bundles": {"source": "volume", "volume": {"create": True}}})
    claim = one(documents, "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    models = next(v for v in pod_of(documents)["volumes"] if v["name"] == "models")
    assert models["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    written = yaml.safe_load((K8S / "components/bundles-volume/claim.yaml").read_text())
    written["metadata"]["namespace"] = "latentd"
    compare([written], [of_no_instance(claim)])


@pytest.mark.parametrize("values", [{}, EVERYTHING.values], ids=["default", "everything"])
def test_lint_finds_nothing(values):
    ran = run_helm("lint", "--strict", CHART, values=with_archive(values))
    assert ran.returncode == 0, ran.stdout + ran.stderr


def selectors(node: Any) -> list[dict[str, str]]:
    """Every selector in the document that is meant for pods of its own release."""
    if isinstance(node, list):
        return list(itertools.chain.from_iterable(map(selectors, node)))
    if not isinstance(node, dict):
        return []
    found = [node["matchLabels"]] if "app.kubernetes.io/name" in node.get("matchLabels", {}) else []
    if node.get("kind") == "Service":
        found.append(node["spec"]["selector"])
    return found + [each for value in node.values() for each in selectors(value)]


def test_two_releases_share_a_namespace():
    values = with_archive(CASES["second release"].values)
    first, second = template(values, "latentd"), template(values, "blue")
    names = [{(d["kind"], d["metadata"]["name"]) for d in release} for release in (first, second)]
    assert not names[0] & names[1]
    assert ("Deployment", "blue-latentd") in names[1]
    labels = one(first, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert len(selectors(first)) == len(selectors(second)) >= 6
    assert all(wanted.items() <= labels.items() for wanted in selectors(first))
    assert not any(wanted.items() <= labels.items() for wanted in selectors(second))


def test_changed_setting_replaces_the_pods():
    def pods(values: Values) -> Values:
        return one(template(with_archive(values)), "Deployment")["spec"]["template"]

    before = pods({})
    assert pods({"replicas": 3, "podDisruptionBudget": {"enabled": False}}) == before
    assert pods({"settings": {"LATENTD_KEEP_VERSIONS": 3}}) != before
    assert pods({"bundles": {"archive": {**ARCHIVE, "sha256": "0" * 64}}}) != before


def test_old_pods_read_nothing_that_an_upgrade_changes():
    """They restart during a rollout, and come back after `kubectl rollout undo`."""

    def config_maps(values: Values) -> dict[str, Values]:
        documents = template(with_archive(values))
        return {d["metadata"]["name"]: d["data"] for d in documents if d["kind"] == "ConfigMap"}

    upgrade = {
        "settings": {"LATENTD_KEEP_VERSIONS": 3},
        "bundles": {"archive": {**ARCHIVE, "sha256": "0" * 64}},
    }
    assert config_maps({}) == config_maps(upgrade)


@pytest.mark.parametrize("name", ["digits", "latentd", "my-latentd"])
def test_resources_are_named_after_the_release(name):
    documents = template(with_archive({}), name)
    expected = name if "latentd" in name else f"{name}-latentd"
    assert {d["metadata"]["name"].removesuffix("-bundles") for d in documents} == {expected}


def test_own_labels_and_annotations_go_before_common_ones():
    common = {"release": "common", "owner": "common"}
    values = {
        "commonLabels": common,
        "commonAnnotations": common,
        "podLabels": {"owner": "pod"},
        "podAnnotations": {"owner": "pod"},
        "monitoring": {"enabled": True},
    }
    documents = template(with_archive(values))
    pod = one(documents, "Deployment")["spec"]["template"]["metadata"]
    assert pod["labels"]["owner"] == pod["annotations"]["owner"] == "pod"
    watched = one(documents, "ServiceMonitor")["metadata"]["labels"]
    assert (watched["release"], watched["owner"]) == ("kube-prometheus-stack", "common")


@pytest.mark.parametrize("release", ["digits.v2", "2-digits"])
def test_release_that_cannot_name_a_service_is_refused(release):
    ran = run_helm("template", release, CHART, values=with_archive({}))
    assert ran.returncode != 0
    assert f"{release}-latentd cannot be a Service's name" in ran.stderr
    documents = template(with_archive({"fullnameOverride": "digits-latentd"}), release)
    assert one(documents, "Service")["metadata"]["name"] == "digits-latentd"


def test_packaged_chart_needs_no_repository(tmp_path):
    ran = run_helm("package", CHART, "--destination", tmp_path)
    assert ran.returncode == 0, ran.stderr
    (packaged,) = tmp_path.iterdir()
    values = with_archive({**EVERYTHING.values, "alerts": {"enabled": True}})
    assert template(values, chart=packaged) == template(values)
