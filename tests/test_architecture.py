"""What each part loads when it is imported. `make lint` checks the imports themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def serving_modules() -> list[str]:
    files = [p.relative_to(ROOT / "serving") for p in (ROOT / "serving").rglob("*.py")]
    names = {".".join(("latentd", *path.with_suffix("").parts)) for path in files}
    return sorted(name.removesuffix(".__init__") for name in names)


def loaded_after(*names: str) -> set[str]:
    """The packages that are loaded after these modules are imported in a process of their own."""
    code = (
        "import importlib, json, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted(m for m in sys.modules if '.' not in m)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(json.loads(run.stdout))


def test_no_serving_module_loads_torch():
    assert len(serving_modules()) > 80
    loaded = loaded_after(*serving_modules())
    assert not loaded & {"torch", "sklearn", "matplotlib", "onnx"}


def test_adoption_of_graphs_loads_no_torch():
    loaded = loaded_after(*(f"latentd.training.adopt.{name}" for name in ("adoption", "sources")))
    assert "onnx" in loaded
    assert not loaded & {"diffusers", "huggingface_hub", "safetensors", "torch"}


def test_lists_of_runs_and_trackers_load_no_torch():
    loaded = loaded_after("latentd.training.runs.command", "latentd.training.trackers.__main__")
    assert not loaded & {"matplotlib", "numpy", "torch"}


def test_client_loads_no_server_packages():
    loaded = loaded_after("latentd.client")
    assert not loaded & {"onnxruntime", "prometheus_client", "uvloop"}


def test_command_line_loads_nothing_that_only_commands_need():
    loaded = loaded_after("latentd.__main__")
    assert not loaded & {"grpc", "numpy", "onnxruntime", "prometheus_client", "pyarrow"}
