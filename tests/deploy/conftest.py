"""The manifests, as kustomize builds them."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "deploy/k8s"

Documents = list[dict[str, Any]]


@pytest.fixture(scope="session")
def build() -> Callable[..., Documents]:
    """Build an overlay with components, both by name; gives the documents."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl, which has kustomize in it, is not here")
    yaml = pytest.importorskip("yaml", reason="PyYAML is not here: make install brings it")

    @functools.cache
    def built(overlay: str, components: tuple[str, ...]) -> str:
        with tempfile.TemporaryDirectory() as folder:
            up = os.path.relpath(K8S, folder)  # kustomize takes no absolute paths
            kustomization = {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "resources": [f"{up}/overlays/{overlay}"],
                "components": [f"{up}/components/{name}" for name in components],
            }
            Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
            ran = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def documents(overlay: str, components: Iterable[str] = ()) -> Documents:
        return list(yaml.safe_load_all(built(overlay, tuple(components))))

    return documents


@pytest.fixture(scope="session", params=["cpu", "gpu"])
def overlay(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def rules() -> dict[str, Any]:
    """The PrometheusRule's own content: what promtool calls a rule file."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not here: make install brings it")
    document = yaml.safe_load((K8S / "components/monitoring/rules.yaml").read_text())
    assert document["kind"] == "PrometheusRule"
    spec: dict[str, Any] = document["spec"]
    return spec
