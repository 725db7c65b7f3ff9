"""The house's own rules: imports run one way, serving never meets torch, settings are one thing."""

from __future__ import annotations

import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from serving import settings
from serving.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]

ORDER = [
    *("errors", "bundle", "settings", "metrics", "logs"),
    *("latents", "likelihood", "images", "codec"),
    *("rowqueue", "sources", "batcher", "engine", "golden", "tuning"),
    *("inference", "repository", "service", "wire", "server"),
]
"""serving/ from low to high: a module imports only from those before it."""

CLIENT = [
    *("errors", "bundle", "latents", "images", "codec"),
    *("results", "failures", "connection", "calls", "resume", "client", "arguments", "console"),
]
"""The client's own way up; it shares the lowest rooms with the server."""


def imports(path: Path) -> set[str]:
    """The modules of this project that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules(folder: str) -> list[Path]:
    return [p for p in (ROOT / folder).glob("*.py") if not p.name.startswith("__")]


def test_serving_imports_run_one_way():
    for order in (ORDER, CLIENT):
        for position, name in enumerate(order):
            used = {
                m.split(".")[1]
                for m in imports(ROOT / "serving" / f"{name}.py")
                if m.startswith("serving.") and not m.startswith("serving.pb")
            }
            above = used - set(order[:position])
            assert not above, f"{name} imports {above} from above"


def test_every_serving_module_has_its_place_in_the_order():
    assert {path.stem for path in modules("serving")} == set(ORDER) | set(CLIENT)


def test_the_bundle_is_the_only_bridge_between_the_halves():
    for path in modules("training"):
        used = {m for m in imports(path) if m.split(".")[0] == "serving"}
        bridge = {m for m in used if m.split(".")[1:2] in ([], ["bundle"], ["errors"])}
        assert used <= bridge if path.name == "export.py" else not used, path
    for path in modules("serving"):
        assert not {m for m in imports(path) if m.split(".")[0] in ("torch", "training")}, path


def test_no_serving_module_brings_in_torch():
    names = [f"serving.{path.stem}" for path in modules("serving")] + ["serving.__main__"]
    code = (
        "import importlib, json, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted(m for m in sys.modules if '.' not in m)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(json.loads(run.stdout))
    assert not loaded & {"torch", "training", "sklearn", "matplotlib", "onnx"}


def test_the_client_needs_no_server_packages():
    code = (
        "import json, sys\nimport serving.client\n"
        "print(json.dumps(sorted(m for m in sys.modules if '.' not in m)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not set(json.loads(run.stdout)) & {"onnxruntime", "prometheus_client", "uvloop"}


def test_a_flag_wins_over_the_environment_and_that_over_the_default():
    def port(flags, environment):
        return settings.read(flags, environment).port

    assert port({}, {}) == 50051
    assert port({}, {"LATENTD_PORT": "1"}) == 1
    assert port({"port": "2"}, {"LATENTD_PORT": "1"}) == 2
    assert port({"port": None}, {"LATENTD_PORT": "1"}) == 1


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("port", "fifty", "--port=fifty: this must be a whole number"),
        ("port", "-1", "--port=-1: this must be at least 0"),
        ("max_rows", "0", "--max-rows=0: this must be at least 1"),
        ("provider", "tpu", "--provider=tpu: choose from auto, cuda, cpu"),
        ("reflection", "maybe", "--reflection=maybe: say true or false"),
        ("drain_seconds", "inf", "--drain-seconds=inf"),
        ("drain_seconds", "nan", "--drain-seconds=nan"),
    ],
)
def test_a_bad_setting_is_named_with_where_it_came_from(flag, value, said):
    with pytest.raises(ConfigError, match=said):
        settings.read({flag: value}, {})
    variable = "LATENTD_" + flag.upper()
    with pytest.raises(ConfigError, match=variable):
        settings.read({}, {variable: value})


def test_every_setting_explains_itself():
    for field in dataclasses.fields(settings.Settings):
        assert field.metadata["help"].endswith("."), field.name


def test_variables_that_set_nothing_are_found():
    environment = {"LATENTD_PRT": "1", "LATENTD_PORT": "2", "PATH": ""}
    assert settings.unknown_variables(environment) == ["LATENTD_PRT"]
