"""Every two components together build and are valid, and so do all."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from tests.deploy.conftest import with_components
from tests.support.manifests import container, pod_of

ROOT = Path(__file__).resolve().parents[2]
COMPONENTS = ROOT / "deploy/k8s/components"
LEAST, *NEWEST = VERSIONS = ("1.30", "1.36", "1.37")

BUNDLES = [(), ("bundles-image",), ("bundles-volume",)]
AUTOSCALING = [(), ("autoscaling",), ("autoscaling-keda",)]
OTHERS = [
    [(), (path.name,)]
    for path in sorted(COMPONENTS.iterdir())
    if not path.name.startswith(("bundles-", "autoscaling"))
]
COMBINATIONS = [sum(parts, ()) for parts in itertools.product(BUNDLES, AUTOSCALING, *OTHERS)]
FEW = [one for one in COMBINATIONS if len(one) < 2] + [max(COMBINATIONS, key=len)]
PAIRS = [one for one in COMBINATIONS if len(one) < 3 or len(one) == len(FEW[-1])]

CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject", "Certificate", "GRPCRoute"}
"""What no Kubernetes schema knows."""


_valid: set[str] = set()


def has_image_volume(document):
    pod = document.get("spec", {}).get("template", {}).get("spec", {})
    return any("image" in volume for volume in pod.get("volumes", []))


def validate(documents):
    validator = pytest.importorskip(
        "kubernetes_validate",
        reason="kubernetes-validate is not here: make test-operate installs it",
    )
    new = {json.dumps(d, sort_keys=True): d for d in documents if d["kind"] not in CUSTOM}
    new = {text: document for text, document in new.items() if text not in _valid}
    for document in new.values():
        for version in NEWEST if has_image_volume(document) else VERSIONS:
            try:
                validator.validate(document, version, strict=True)
            except validator.ValidationError as error:
                name = f"{document['kind']} {document['metadata']['name']}"
                pytest.fail(f"{name}, {version}: {error}")
    _valid.update(new)


@pytest.mark.parametrize("components", FEW, ids="+".join)
def test_each_component_builds_and_is_valid(build, overlay, components):
    validate(build(overlay, components))


@pytest.mark.slow
def test_every_pair_builds_and_is_valid(build, overlay):
    validate([d for components in PAIRS for d in build(overlay, components)])


def test_least_version_is_stated():
    assert f"| Kubernetes {LEAST} | all" in (ROOT / "deploy/k8s/README.md").read_text()


def test_gpu_patch_of_the_readme_is_valid(kustomize):
    """A RuntimeClass and a slice of a GPU."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not here: make install brings it")
    page = (ROOT / "deploy/k8s/overlays/gpu/README.md").read_text()
    patches = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    documents = kustomize(it=with_components("gpu") | patches)
    validate(documents)
    assert pod_of(documents)["runtimeClassName"] == "nvidia"
    limits = container(documents)["resources"]["limits"]
    assert {name for name in limits if "nvidia" in name} == {"nvidia.com/mig-1g.10gb"}


def test_alerts_build_and_are_valid(kustomize):
    validate(kustomize(it={"resources": ["latentd/deploy/k8s/alerts"]}))


def test_every_folder_has_a_readme():
    for folder in (*COMPONENTS.iterdir(), *(ROOT / "deploy/k8s/overlays").iterdir()):
        assert len((folder / "README.md").read_text().splitlines()) >= 3, folder
        assert folder.name in (ROOT / "deploy/README.md").read_text(), folder
