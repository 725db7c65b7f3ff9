"""The wheel in an environment of its own, in a project whose folders have the names of ours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.processes import running

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"serving": "latentd", "training": "latentd/training"}
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LATENTD_"))}

CALL = """
import client, serving, training  # the project's own
import numpy as np
from latentd.client import Client

assert {client.OWNER, serving.OWNER, training.OWNER} == {"project"}
x = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
with Client(TARGET) as c:
    assert np.array_equal(c.reconstruct(x).x, x)
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: what older builds left in the tree would go into it."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--quiet", "--wheel-dir", source / "dist", source], check=True)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The bin folder of an environment that holds the wheel and sees our dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    # A .pth adds folders without the .pth files in them: the editable install stays out.
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "dependencies.pth").write_text("\n".join(shared))
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--no-index", wheel], check=True)
    return folder / "bin"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for name in ("client", "serving", "training"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text('OWNER = "project"\n')
    return folder


@pytest.fixture
def run(installed: Path, project: Path) -> Run:
    """Run a program of the environment in the project."""

    def run_(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [installed / program, *map(str, arguments)]
        ended = subprocess.run(
            command, cwd=project, env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
        return ended

    return run_


@contextmanager
def served(installed: Path, project: Path, bundles: Path) -> Iterator[str]:
    """`latentd serve` in the project; gives its target."""
    command = [installed / "latentd", "serve", "--bundles", bundles, "--workers", "1"]
    with running(
        [*command, "--port", "0", "--metrics-port", "0", "--provider", "cpu"],
        cwd=project,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        for line in process.stderr:
            if found := re.search(r"Listening on (\S+),", line):
                yield found[1]
                break
        else:
            raise AssertionError("the server ended before it listened")


def test_wheel_holds_every_module(wheel):
    expected = set()
    for folder, package in PACKAGES.items():
        for path in (ROOT / folder).rglob("*"):
            if (
                path.suffix in (".css", ".html", ".js", ".json", ".onnx", ".py", ".pyi", ".typed")
                and "__pycache__" not in path.parts
            ):
                expected.add(f"{package}/{path.relative_to(ROOT / folder)}")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_installed_package_is_the_wheels(run, installed):
    code = "import latentd, latentd.training; print(latentd.__file__, latentd.training.__file__)"
    files = run("python", "-c", code).stdout.split()
    assert all(file.startswith(str(installed.parent)) for file in files), files


def test_client_and_server_work_in_a_project_with_packages_of_our_folders_names(
    run, installed, project, toy_bundles
):
    with served(installed, project, toy_bundles) as target:
        (project / "call.py").write_text(CALL.replace("TARGET", repr(target)))
        run("python", "call.py")
        assert "toy" in run("latentd", "client", "models", "--server", target).stdout


def test_trainer_works_in_a_project_with_packages_of_our_folders_names(run, project):
    assert "--latent-size" in run("latentd", "train", "--help").stdout
    run("latentd", "train", "--data", "digits", "--out", "run", "--epochs", 2)
    assert (project / "run" / "best.pt").exists()
