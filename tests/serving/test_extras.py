"""A command whose packages are not installed ends in one sentence that names the extra."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BARE = """
import sys

class Bare:
    '''As an environment with the standard library, latentd and these packages alone.'''

    def find_spec(self, name, path=None, target=None):
        package = name.partition(".")[0]
        known = {"serving", "training", *PACKAGES, *sys.stdlib_module_names}
        if package not in known and not package.startswith("_"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Bare())
from HALF.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
CLIENT = {"google", "grpc", "grpc_status", "numpy", "PIL"}
SERVE = CLIENT | {"grpc_health", "grpc_reflection", "onnxruntime", "prometheus_client", "uvloop"}


def run(half: str, words: str, packages: set[str], folder: Path) -> tuple[int, str, str]:
    code = BARE.replace("PACKAGES", repr(packages)).replace("HALF", half)
    command = [sys.executable, "-c", code, *words.split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("half", "words", "packages", "extra"),
    [
        ("serving", "serve", set(), "serve"),
        ("serving", "serve --bundles ROOT --workers 2", SERVE - {"grpc_reflection"}, "serve"),
        ("serving", "serve --bundles ROOT --workers 1", SERVE - {"prometheus_client"}, "serve"),
        ("serving", "plan --rate 1", CLIENT, "serve"),
        ("serving", "client health", set(), "client"),
        ("serving", "client sample", CLIENT - {"numpy"}, "client"),
        ("serving", "reconstruct --input x --output y --bundle z", set(), "jobs"),
        ("serving", "reconstruct --input x.npy --output y --bundle BUNDLE", SERVE, "jobs"),
        ("serving", "reconstruct --input x.parquet --output y --bundle BUNDLE", SERVE, "jobs"),
        ("training", "train --out y", CLIENT, "train"),
        ("training", "evaluate y", CLIENT, "train"),
        ("training", "compare --out y", CLIENT, "train"),
        ("training", "export --checkpoint x --bundles y --name z", CLIENT, "train"),
    ],
)
def test_a_missing_extra_is_named(toy_bundles, tmp_path, half, words, packages, extra):
    words = words.replace("BUNDLE", str(toy_bundles / "toy")).replace("ROOT", str(toy_bundles))
    status, _, said = run(half, words, packages, tmp_path)
    assert status in (1, 78), said
    assert f"pip install 'latentd[{extra}]'" in said
    assert len(said.splitlines()) == 1, said


def test_a_token_is_made_with_nothing_installed(tmp_path):
    status, token, line = run("serving", "token someone", set(), tmp_path)
    assert (status, bool(token)) == (0, True)
    assert line.startswith("someone ")


@pytest.mark.parametrize("half", ["serving", "training"])
def test_help_needs_nothing_installed(tmp_path, half):
    status, said, _ = run(half, "--help", set(), tmp_path)
    assert status == 0
    assert "usage" in said
