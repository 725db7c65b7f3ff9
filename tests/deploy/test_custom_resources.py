"""Custom resources against the schemas that their operators publish. cloudcoil's packages have KEDA
2.16, the Prometheus operator 0.80 and cert-manager 1.17; kubernetes-models' has the Gateway API."""

from __future__ import annotations

import copy
import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

GATEWAY_API = Path(__file__).resolve().parents[2] / "build/gateway-api"
MODELS = {
    "Certificate": "cloudcoil.models.cert_manager.v1",
    "ScaledObject": "cloudcoil.models.keda.v1alpha1",
    "PrometheusRule": "cloudcoil.models.prometheus_operator.v1",
    "ServiceMonitor": "cloudcoil.models.prometheus_operator.v1",
}


def unfit(document: dict[str, Any]) -> str:
    """The errors of a custom resource; empty: none."""
    kind = document["kind"]
    if kind == "GRPCRoute":
        return unfit_route(document)
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


def unfit_route(document: dict[str, Any]) -> str:
    """The same of a GRPCRoute. Fields that the schema does not know are not found."""
    if not GATEWAY_API.exists() or shutil.which("node") is None:
        pytest.skip("the schema of GRPCRoute is not here: make test-operate installs it")
    check = """
        import { GRPCRoute } from
            "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1/GRPCRoute";
        import { readFileSync } from "fs";
        try { new GRPCRoute(JSON.parse(readFileSync(0))).validate(); }
        catch (error) { console.log(error.message); }
    """
    command = ["node", "--input-type=module", "--eval", check]
    return subprocess.run(
        command,
        cwd=GATEWAY_API,
        input=json.dumps(document),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


KINDS = {*MODELS, "GRPCRoute"}
COMPONENTS = ["monitoring", "autoscaling-keda", "tls", "certificate", "gateway"]


@pytest.fixture
def custom(build, kustomize) -> list[dict[str, Any]]:
    documents = build("cpu", COMPONENTS)
    documents += kustomize(it={"resources": ["latentd/deploy/k8s/alerts"]})
    return [d for d in documents if d["kind"] in KINDS]


def test_custom_resources_are_valid(custom):
    assert sorted(d["kind"] for d in custom) == sorted([*KINDS, "PrometheusRule"])
    for document in custom:
        assert unfit(document) == ""


def test_every_kind_is_checked(build):
    folder = Path(__file__).resolve().parents[2] / "deploy/k8s/components"
    documents = [d for path in folder.iterdir() for d in build("cpu", [path.name])]
    groups = {d["kind"]: d["apiVersion"].rpartition("/")[0] for d in documents}
    own = re.compile(r"(apps|batch|autoscaling|policy|networking\.k8s\.io)?")
    assert {kind for kind, group in groups.items() if not own.fullmatch(group)} == KINDS


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
        ("Certificate", lambda spec: spec.pop("issuerRef")),
        ("Certificate", lambda spec: spec["privateKey"].update(algorithm="elliptic")),
        ("Certificate", lambda spec: spec.update(dnsName="latentd.latentd.svc")),
        ("GRPCRoute", lambda spec: spec["rules"][0]["backendRefs"][0].update(port="50051")),
        ("GRPCRoute", lambda spec: spec["rules"][0]["backendRefs"][0].pop("name")),
    ],
)
def test_invalid_resource_is_found(custom, kind, spoil):
    document = copy.deepcopy(next(d for d in custom if d["kind"] == kind))
    spoil(document["spec"])
    assert unfit(document)
