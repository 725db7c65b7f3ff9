"""A command whose packages are not installed names the extra in one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BARE = """
import sys

class Bare:
    '''As an environment with the standard library, latentd and these packages alone.'''

    def find_spec(self, name, path=None, target=None):
        package = name.partition(".")[0]
        known = {"latentd", *PACKAGES, *sys.stdlib_module_names}
        if package not in known and not package.startswith("_"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Bare())
from latentd.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
CLIENT = {"google", "grpc", "grpc_status", "numpy", "PIL"}
SERVE = CLIENT | {"grpc_health", "grpc_reflection", "onnxruntime", "prometheus_client", "uvloop"}


def run(words: str, packages: set[str], folder: Path) -> tuple[int, str, str]:
    code = BARE.replace("PACKAGES", repr(packages))
    command = [sys.executable, "-c", code, *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "packages", "extra"),
    [
        ("serve", set(), "serve"),
        ("serve --bundles ROOT --workers 2", SERVE - {"grpc_reflection"}, "serve"),
        ("serve --bundles ROOT --workers 1", SERVE - {"prometheus_client"}, "serve"),
        ("plan --rate 1", CLIENT, "serve"),
        ("client health", set(), "client"),
        ("client sample", CLIENT - {"numpy"}, "client"),
        ("batch --input x --output y --bundle z", set(), "jobs"),
        ("batch --input x.npy --output y --bundle BUNDLE", SERVE, "jobs"),
        ("batch --input x.parquet --output y --bundle BUNDLE", SERVE, "jobs"),
        ("train --out y", CLIENT, "train"),
        ("evaluate y", CLIENT, "train"),
        ("compare --out y", CLIENT, "train"),
        ("tune --trials 1 --out y", CLIENT, "tune"),
        ("export --checkpoint x --bundles y --name z", CLIENT, "train"),
        ("adopt --onnx x y --bundles y --name z", CLIENT, "adopt"),
        ("adopt --optimum x --bundles y --name z", CLIENT, "adopt"),
        ("adopt --diffusers x --bundles y --name z", CLIENT, "diffusers"),
    ],
)
def test_missing_extra_is_named(toy_bundles, tmp_path, words, packages, extra):
    words = words.replace("BUNDLE", str(toy_bundles / "toy")).replace("ROOT", str(toy_bundles))
    status, _, message = run(words, packages, tmp_path)
    assert status in (1, 78), message
    assert f"pip install 'latentd[{extra}]'" in message
    assert len(message.splitlines()) == 1, message


def test_bundle_needs_no_packages(toy_bundles, tmp_path):
    status, text, _ = run(f"bundle show {toy_bundles / 'toy'}", set(), tmp_path)
    assert (status, text.splitlines()[0]) == (0, "toy version 1")


def test_lists_of_runs_need_no_packages(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"run": {"data": "digits"}}\n')
    status, text, _ = run("runs .", set(), tmp_path)
    assert (status, text.splitlines()[0]) == (0, "digits: -")
    status, text, _ = run("compare-runs . .", set(), tmp_path)
    assert (status, "settings: the same" in text) == (0, True)


def test_token_needs_no_packages(tmp_path):
    status, token, line = run("token someone", set(), tmp_path)
    assert (status, bool(token)) == (0, True)
    assert line.startswith("someone ")


@pytest.mark.parametrize("words", ["--help", "train --help", "serve --help"])
def test_help_needs_no_packages(tmp_path, words):
    status, message, _ = run(words, set(), tmp_path)
    assert status == 0
    assert "usage" in message
