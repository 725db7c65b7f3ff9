"""Custom resources against the schemas that their operators publish, as cloudcoil's packages have
them: KEDA 2.16, the Prometheus operator 0.80."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest

MODELS = {
    "ScaledObject": "cloudcoil.models.keda.v1alpha1",
    "PrometheusRule": "cloudcoil.models.prometheus_operator.v1",
    "ServiceMonitor": "cloudcoil.models.prometheus_operator.v1",
}


def unfit(document: dict[str, Any]) -> str:
    """The errors of a custom resource; empty: none."""
    kind = document["kind"]
    module = pytest.importorskip(
        MODELS[kind], reason=f"the schema of {kind} is not here: make test-operate installs it"
    )
    pydantic = importlib.import_module("pydantic")
    try:
        model = getattr(module, kind).model_validate(document)
    except pydantic.ValidationError as error:
        return str(error)
    # What a schema does not know is read over; an API server would drop it likewise.
    kept = model.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return "" if kept == document else f"of {document} only {kept} is known"


@pytest.fixture
def custom(build, kustomize) -> list[dict[str, Any]]:
    documents = build("cpu", ["monitoring", "autoscaling-keda"])
    documents += kustomize(it={"resources": ["latentd/deploy/k8s/alerts"]})
    return [d for d in documents if d["kind"] in MODELS]


def test_custom_resources_are_valid(custom):
    assert sorted(d["kind"] for d in custom) == sorted([*MODELS, "PrometheusRule"])
    for document in custom:
        assert unfit(document) == ""


def test_every_kind_is_checked(build):
    documents = build("cpu", ["monitoring", "autoscaling-keda", "tls", "network-policy"])
    groups = {d["kind"]: d["apiVersion"].rpartition("/")[0] for d in documents}
    foreign = {k for k, group in groups.items() if "." in group and not group.endswith("k8s.io")}
    assert foreign == set(MODELS)


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("ServiceMonitor", lambda spec: spec["endpoints"][0].update(interval="often")),
        ("ServiceMonitor", lambda spec: spec["endpoints"][0].update(intervall="15s")),
        ("ServiceMonitor", lambda spec: spec.pop("selector")),
        ("ScaledObject", lambda spec: spec.update(maxReplicaCount="many")),
        ("ScaledObject", lambda spec: spec.update(maxReplicas=10)),
        ("ScaledObject", lambda spec: spec["triggers"][0].pop("type")),
        ("PrometheusRule", lambda spec: spec["groups"][0].pop("name")),
    ],
)
def test_invalid_resource_is_found(custom, kind, spoil):
    document = copy.deepcopy(next(d for d in custom if d["kind"] == kind))
    spoil(document["spec"])
    assert unfit(document)
