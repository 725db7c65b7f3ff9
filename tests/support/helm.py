"""Helm itself, run on the chart."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/latentd"

Documents = list[dict[str, Any]]
Values = dict[str, Any]

SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
ARCHIVE = {"url": "https://bundles.example.com/digits-2.tar.gz", "sha256": SHA256}


@functools.cache
def helm() -> str:
    found = shutil.which("helm") or shutil.which(ROOT / "build/helm/helm")
    if found is None:
        pytest.skip("helm is not here: make build/helm/helm brings it")
    return str(found)


def run_helm(*arguments: object, values: Values | None = None) -> subprocess.CompletedProcess[str]:
    command = [helm(), *map(str, arguments)]
    if values is not None:
        command += ["--values", "-"]
    written = json.dumps(values)  # JSON is YAML
    return subprocess.run(command, input=written, capture_output=True, text=True, cwd=ROOT)


def template(values: Values, release: str = "latentd", chart: Path = CHART) -> Documents:
    """What helm would install in the namespace latentd."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not here: make install brings it")
    ran = run_helm("template", release, chart, "--namespace=latentd", values=values)
    assert ran.returncode == 0, ran.stderr
    return list(yaml.safe_load_all(ran.stdout))


def with_archive(values: Values) -> Values:
    """The values, with what a release needs that fetches its bundles."""
    return {**values, "bundles": {"archive": ARCHIVE, **values.get("bundles", {})}}
