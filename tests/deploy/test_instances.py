"""Several instances, other names, other namespaces: each object finds its own, and only those."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy.conftest import with_components
from tests.support.manifests import one, pod_of

yaml = pytest.importorskip("yaml", reason="PyYAML is not here: make install brings it")

K8S = Path(__file__).resolve().parents[2] / "deploy/k8s"
NAME, INSTANCE, COMPONENT = (
    f"app.kubernetes.io/{key}" for key in ("name", "instance", "component")
)

SERVER = ["monitoring", "network-policy", "autoscaling-keda", "tls", "certificate", "gateway"]
ALL = [*SERVER, "batch-job", "training-job"]
ADAPTER = ["monitoring", "network-policy", "autoscaling", "gateway"]

OWN = {"latentd-bundles", "latentd-data", "latentd-runs", "latentd-tls", "latentd-tokens"}
"""Claims and Secrets that are made apart."""

README = [
    yaml.safe_load(block)
    for block in re.findall(r"^```yaml\n(.*?)^```", (K8S / "README.md").read_text(), re.M | re.S)
]
FIRST, SECOND = README

CASES = {
    "README": {"both": {"resources": ["../first", "../second"]}, "first": FIRST, "second": SECOND},
    "default": {"it": with_components("cpu", ALL)},
    "without the transformer": {"it": with_components("cpu", ALL, transformers=[])},
    "overlays together": {
        "it": {"resources": [f"latentd/deploy/k8s/overlays/{name}" for name in ("cpu", "gpu")]}
    },
    "overlays with components": {
        "both": {"resources": ["../cpu", "../gpu"]},
        "cpu": with_components("cpu", SERVER),
        "gpu": with_components(
            "gpu", [*ADAPTER, "certificate", "tls", "batch-job", "training-job"]
        ),
    },
    "prefix": {"it": with_components("gpu", ALL, namePrefix="blue-")},
    "namespace": {"it": with_components("cpu", ALL, namespace="staging")},
    "two of a kind": {
        "both": {"resources": ["../blue", "../green"]},
        "blue": with_components("cpu", ALL, namePrefix="blue-"),
        "green": with_components("cpu", ALL, namePrefix="green-"),
    },
    "one of two with a certificate": {
        "both": {"resources": ["../blue", "../green"]},
        "blue": with_components("cpu", ["tls", "certificate"], namePrefix="blue-"),
        "green": with_components("cpu", ["tls"], namePrefix="green-"),
    },
    "two namespaces": {
        "both": {"resources": ["../production", "../staging"]},
        "production": with_components("cpu", ALL),
        "staging": with_components("cpu", ALL, namespace="staging"),
    },
    "in layers": {
        "outer": {
            "resources": ["../inner"],
            "namespace": "staging",
            "namePrefix": "blue-",
            "transformers": ["latentd/deploy/k8s/instance"],
        },
        "inner": with_components("gpu", ALL),
    },
}


@pytest.fixture(params=CASES)
def documents(kustomize, request):
    return kustomize(**CASES[request.param])


def label(document):
    return document["metadata"]["labels"][INSTANCE]


def namespace(document):
    return document["metadata"]["namespace"]


def pods(documents):
    """The labels of the pods that each workload makes."""
    return [
        (d, d["spec"]["template"]["metadata"]["labels"])
        for d in documents
        if d["kind"] in ("Deployment", "Job")
    ]


def objects_within(node):
    """Every object in a document, the outer ones first."""
    if isinstance(node, dict):
        yield node
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, (dict, list)):
            yield from objects_within(value)


def selectors(document):
    """All of a document's selectors that mean pods of latentd."""
    found = [o["matchLabels"] for o in objects_within(document["spec"]) if "matchLabels" in o]
    if document["kind"] == "Service":
        found.append(document["spec"]["selector"])
    return [s for s in found if s.keys() & {NAME, INSTANCE, COMPONENT}]


SELECTING = {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor"}


def test_selectors_match_their_own_pods_only(documents):
    seen = set()
    for document in documents:
        if document["kind"] not in SELECTING:
            continue
        seen.add(document["kind"])
        assert selectors(document), document
        for selector in selectors(document):
            assert selector.keys() == {NAME, INSTANCE, COMPONENT}
            matched = [
                workload
                for workload, labels in pods(documents)
                if selector.items() <= labels.items() and namespace(workload) == namespace(document)
            ]
            named = [(workload["metadata"]["name"], label(workload)) for workload in matched]
            assert named == [(document["metadata"]["name"], label(document))], document
    assert SELECTING - seen <= {"NetworkPolicy", "ServiceMonitor"}


def test_instance_is_the_name_of_deployment_and_service(documents):
    for deployment in (d for d in documents if d["kind"] == "Deployment"):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        name = deployment["metadata"]["name"]
        assert label(deployment) == labels[INSTANCE] == name
        (service,) = [
            d
            for d in documents
            if d["kind"] == "Service"
            and d["spec"]["selector"].items() <= labels.items()
            and namespace(d) == namespace(deployment)
        ]
        assert service["metadata"]["name"] == name, "Prometheus' job"


def test_objects_are_distinct_and_labelled(documents):
    keys = [(d["kind"], namespace(d), d["metadata"]["name"]) for d in documents]
    assert len(set(keys)) == len(keys)
    instances = {
        (namespace(d), d["metadata"]["name"]) for d in documents if d["kind"] == "Deployment"
    }
    for document in documents:
        assert document["metadata"]["labels"][NAME] == "latentd"
        assert (namespace(document), label(document)) in instances


REFERENCES = {
    "serviceAccountName": "ServiceAccount",
    "subdomain": "Service",
    "claimName": "PersistentVolumeClaim",
    "secretName": "Secret",
}


def references(node):
    """Every object that is referred to: its kind and name."""
    for each in objects_within(node):
        for key, value in each.items():
            if key in REFERENCES:
                yield REFERENCES[key], value
            elif key in ("configMapRef", "configMapKeyRef", "configMap"):
                yield "ConfigMap", value["name"]
            elif key == "scaleTargetRef":
                yield value["kind"], value["name"]
            elif key == "backendRefs":
                yield from (("Service", backend["name"]) for backend in value)


def test_names_exist(documents):
    for document in documents:
        there = {
            ("Secret" if d["kind"] == "Certificate" else d["kind"], d["metadata"]["name"])
            for d in documents
            if (namespace(d), label(d)) == (namespace(document), label(document))
        }
        for kind, name in references(document.get("spec", {})):
            made_apart = kind in ("PersistentVolumeClaim", "Secret") and name in OWN
            assert (kind, name) in there or made_apart, document["metadata"]["name"]


def test_certificate_is_the_one_that_the_pod_reads(documents):
    for certificate in (d for d in documents if d["kind"] == "Certificate"):
        spec = certificate["spec"]
        host = f"{label(certificate)}.{namespace(certificate)}.svc"
        assert spec["dnsNames"] == [host, f"{host}.cluster.local"]
        (pod,) = [
            d["spec"]["template"]["spec"]
            for d in documents
            if d["kind"] == "Deployment"
            and (namespace(d), label(d)) == (namespace(certificate), label(certificate))
        ]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["tls"]["secret"]["secretName"] == spec["secretName"]
        assert certificate["metadata"]["name"] == spec["secretName"]


def queries(document):
    if document["kind"] == "PrometheusRule":
        return [rule["expr"] for group in document["spec"]["groups"] for rule in group["rules"]]
    triggers = document["spec"]["triggers"]
    return [t["metadata"]["query"] for t in triggers if t["type"] == "prometheus"]


def test_queries_name_their_instance(documents):
    for document in documents:
        if document["kind"] not in ("PrometheusRule", "ScaledObject"):
            continue
        wanted = f'{{namespace="{namespace(document)}", job="{label(document)}"}}'
        assert queries(document)
        for query in queries(document):
            metrics = re.findall(r"\b(?:latentd_\w+|up)\b", query)
            assert re.findall(r"\{.*?\}", query) == [wanted] * len(metrics)


def test_training_pods_find_the_first_of_them(documents, tmp_path):
    torchrun = tmp_path / "torchrun"
    torchrun.write_text('#!/bin/sh\necho "$@"\n')
    torchrun.chmod(0o755)
    for job in (d for d in documents if d["kind"] == "Job"):
        pod = job["spec"]["template"]["spec"]
        if "subdomain" not in pod:
            continue
        (container,) = pod["containers"]
        labels = {"batch.kubernetes.io/job-name": job["metadata"]["name"]}  # Kubernetes sets it
        given = {"JOB_COMPLETION_INDEX": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        for variable in container["env"]:
            path = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")
            found = re.fullmatch(r"metadata\.labels\['(.+)'\]", path)
            given[variable["name"]] = labels[found[1]] if found else variable["value"]
        said = subprocess.run(
            [*container["command"], *container["args"]], env=given, capture_output=True, text=True
        ).stdout.split()
        host = f"{job['metadata']['name']}-0.{pod['subdomain']}"
        assert f"--master-addr={host}" in said


def test_objects_of_others_are_left_alone(kustomize):
    """Also by the label transformer that many kustomizations have, which writes into selectors."""
    labels = [{"pairs": {"team": "vision"}, "includeSelectors": True}]
    before = one(kustomize(it=with_components("cpu", SERVER)), "NetworkPolicy")["spec"]
    after = one(kustomize(it=with_components("cpu", SERVER, labels=labels)), "NetworkPolicy")[
        "spec"
    ]
    assert after["podSelector"]["matchLabels"].pop("team") == "vision"
    assert after == before


def test_bundles_of_the_readme_reach_the_pod(kustomize, overlay):
    given = FIRST | {"resources": [f"latentd/deploy/k8s/overlays/{overlay}"]}
    documents = kustomize(it=given)
    (fetch,) = pod_of(documents)["initContainers"]
    maps = {v["valueFrom"]["configMapKeyRef"]["name"] for v in fetch["env"]}
    (name,) = maps
    assert one(documents, "ConfigMap", name)["data"]["BUNDLES_URL"] == "https://..."
    assert "fetch_bundles.py" in one(documents, "ConfigMap", name)["data"]


@pytest.mark.parametrize("component", sorted(path.name for path in (K8S / "components").iterdir()))
def test_what_is_deleted_holds_no_data(build, overlay, component):
    kinds = {document["kind"] for document in build(overlay, [component])}
    assert not kinds & {"Namespace", "PersistentVolumeClaim"}


def test_claims_that_are_mounted_can_be_made(build):
    made = {
        yaml.safe_load(path.read_text())["metadata"]["name"] for path in K8S.rglob("claim.yaml")
    }
    documents = build("cpu", ["bundles-volume", "batch-job", "training-job"])
    found = {
        name
        for d in documents
        for kind, name in references(d.get("spec", {}))
        if kind == "PersistentVolumeClaim"
    }
    assert found == made
    assert made < OWN


def test_every_page_says_to_make_the_namespace_first():
    for page in K8S.parent.rglob("*.md"):
        for text in re.findall(r"kubectl apply -k deploy/k8s/overlays", page.read_text()):
            assert (
                "kubectl apply -f deploy/k8s/namespace.yaml" in page.read_text().partition(text)[0]
            )


def test_label_that_prometheus_selects_by_can_be_set(kustomize):
    page = (K8S / "alerts/README.md").read_text()
    labels = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])["labels"]
    for named, release in (([], "kube-prometheus-stack"), (labels, "YOUR-RELEASE")):
        documents = kustomize(it=with_components("cpu", ["monitoring"], labels=named))
        documents += kustomize(it={"resources": ["latentd/deploy/k8s/alerts"], "labels": named})
        watched = [d for d in documents if d["kind"] in ("ServiceMonitor", "PrometheusRule")]
        assert [d["metadata"]["labels"]["release"] for d in watched] == [release] * 3
        assert one(documents, "Deployment")["spec"]["selector"]["matchLabels"].keys() == {
            NAME,
            INSTANCE,
            COMPONENT,
        }
