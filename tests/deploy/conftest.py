"""The manifests, as kustomize builds them."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.latent_maps import toy_map
from tests.support.names import Names
from tests.support.toy_bundle import PublishToy

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "deploy/k8s"

Documents = list[dict[str, Any]]


@pytest.fixture(scope="session")
def kustomize() -> Callable[..., Documents]:
    """Build kustomizations, by the names of their folders; gives the first one's documents.

    A path that begins with latentd/ is one of this repository, as in the README.
    """
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl, which has kustomize in it, is not here")
    yaml = pytest.importorskip("yaml", reason="PyYAML is not here: make install brings it")

    @functools.cache
    def built(text: str) -> str:
        folders: dict[str, dict[str, Any]] = json.loads(text)
        with tempfile.TemporaryDirectory() as root:
            for name, kustomization in folders.items():
                folder = Path(root, name)
                folder.mkdir()
                up = os.path.relpath(ROOT, folder)  # kustomize takes no absolute paths
                content = json.dumps(kustomization).replace('"latentd/', f'"{up}/')
                (folder / "kustomization.yaml").write_text(content)
            command = [kubectl, "kustomize", Path(root, next(iter(folders)))]
            ran = subprocess.run(command, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def documents(**folders: dict[str, Any]) -> Documents:
        return list(yaml.safe_load_all(built(json.dumps(folders))))

    return documents


def with_components(overlay: str, components: Iterable[str] = (), **more: Any) -> dict[str, Any]:
    """The README's kustomization: an overlay with components, both by name."""
    return {
        "resources": [f"latentd/deploy/k8s/overlays/{overlay}"],
        "components": [f"latentd/deploy/k8s/components/{name}" for name in components],
        "transformers": ["latentd/deploy/k8s/instance"],
    } | more


@pytest.fixture(scope="session")
def build(kustomize: Callable[..., Documents]) -> Callable[..., Documents]:
    """Build an overlay with components, both by name; gives the documents."""

    def documents(overlay: str, components: Iterable[str] = ()) -> Documents:
        return kustomize(it=with_components(overlay, components))

    return documents


@pytest.fixture(scope="session", params=["cpu", "gpu"])
def overlay(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def rules() -> dict[str, Any]:
    """The shared PrometheusRule's own content: what promtool calls a rule file."""
    return content("alerts/rules.yaml")


@pytest.fixture(scope="session")
def all_rules(rules: dict[str, Any]) -> dict[str, Any]:
    """The shared rules and those of an instance."""
    return {"groups": rules["groups"] + content("components/monitoring/rules.yaml")["groups"]}


@pytest.fixture
def names() -> Iterator[Names]:
    server = Names()
    yield server
    server.close()


@pytest.fixture
def models(publish_toy: PublishToy) -> Iterator[Path]:
    """Bundles that any user can read."""
    # Not under pytest's own folder, into which no other user can look.
    root = Path(tempfile.mkdtemp(prefix="latentd-models-"))
    publish_toy(root, map_npz=toy_map().to_npz())
    let_read(root)
    yield root
    shutil.rmtree(root)


def let_read(root: Path) -> None:
    """Any user may read the folder and all in it."""
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)


def content(name: str) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not here: make install brings it")
    document = yaml.safe_load((K8S / name).read_text())
    assert document["kind"] == "PrometheusRule"
    spec: dict[str, Any] = document["spec"]
    return spec
