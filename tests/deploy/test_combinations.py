"""Every combination of components builds and is valid."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPONENTS = ROOT / "deploy/k8s/components"
NEWEST = ("1.36", "1.37")

BUNDLES = [(), ("bundles-image",), ("bundles-volume",)]
AUTOSCALING = [(), ("autoscaling",), ("autoscaling-keda",)]
OTHERS = [
    [(), (path.name,)]
    for path in sorted(COMPONENTS.iterdir())
    if not path.name.startswith(("bundles-", "autoscaling"))
]
COMBINATIONS = [sum(parts, ()) for parts in itertools.product(BUNDLES, AUTOSCALING, *OTHERS)]
FEW = [one for one in COMBINATIONS if len(one) < 2] + [max(COMBINATIONS, key=len)]

CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
"""What no Kubernetes schema knows."""


_valid: set[str] = set()


def validate(documents):
    validator = pytest.importorskip(
        "kubernetes_validate",
        reason="kubernetes-validate is not here: make test-operate installs it",
    )
    new = {json.dumps(d, sort_keys=True): d for d in documents if d["kind"] not in CUSTOM}
    new = {text: document for text, document in new.items() if text not in _valid}
    for document, version in itertools.product(new.values(), NEWEST):
        try:
            validator.validate(document, version, strict=True)
        except validator.ValidationError as error:
            pytest.fail(f"{document['kind']} {document['metadata']['name']}, {version}: {error}")
    _valid.update(new)


@pytest.mark.parametrize("components", FEW, ids="+".join)
def test_each_component_builds_and_is_valid(build, overlay, components):
    validate(build(overlay, components))


@pytest.mark.slow
def test_every_combination_builds_and_is_valid(build, overlay):
    validate([d for components in COMBINATIONS for d in build(overlay, components)])


def test_alerts_build_and_are_valid(kustomize):
    validate(kustomize(it={"resources": ["latentd/deploy/k8s/alerts"]}))


def test_every_folder_has_a_readme():
    for folder in (*COMPONENTS.iterdir(), *(ROOT / "deploy/k8s/overlays").iterdir()):
        assert len((folder / "README.md").read_text().splitlines()) >= 3, folder
        assert folder.name in (ROOT / "deploy/README.md").read_text(), folder
