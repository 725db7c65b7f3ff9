"""The house's own rules: imports run one way, serving never meets torch, settings are one thing."""

from __future__ import annotations

import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from latentd import __main__, settings
from latentd.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]

ROOMS = {
    "": [
        *(
            "errors",
            "flags",
            "atomic",
            "schema",
            "manifest",
            "bundle",
            "settings",
            "metrics",
            "logs",
        ),
        *("ranges", "latents", "likelihood", "images", "codec"),
    ],
    "calls": ["stats", "coroutines"],
    "batching": ["in_flight", "rowqueue", "runner", "batcher"],
    "runtime": [
        *("capture_lock", "cuda", "provider", "buffers", "thread_buckets", "io_binding"),
        *("external_data", "engine", "golden", "profiling", "memory"),
    ],
    "models": [
        *("sources", "scoring", "payloads", "loading", "inference"),
        *("storage", "rejected", "loads", "attempts", "trial_results", "trial", "version_loader"),
        *("repository", "poller", "watchdog"),
    ],
    "rpc": ["methods", "finite", "fields", "stream_reconstruct", "service"],
    "transport": [
        *("access", "tokens", "tls", "response_memory", "request_memory", "status", "tracing"),
        *("messages", "call_recorder", "admission", "handlers"),
        *("guard", "health", "reflection", "listener_aio", "listener"),
    ],
    "process": [
        *(
            "metrics_server",
            "port",
            "server",
            "worker_metrics",
            "worker",
            "supervisor",
            "command",
            "capacity",
            "plan",
            "parser",
        ),
    ],
}
SERVER = [f"{room}.{name}".lstrip(".") for room, names in ROOMS.items() for name in names]
"""serving/ from low to high: a module imports only from those before it."""

SHARED = [
    "errors",
    "atomic",
    "schema",
    "manifest",
    "bundle",
    "ranges",
    "latents",
    "images",
    "codec",
]
"""The rooms that the client shares with the server."""

CLIENT = [
    *("results", "retry", "channel", "arguments", "calls", "streams", "client"),
]
CONSOLE = ["inputs", "outputs", "terminal", "commands", "parser"]

READERS = ["kinds", "files", "verified", "rows", "arrays", "pictures", "parquet", "sources"]

JOBS = [
    *("exit_codes", "plan", "inputs"),
    *("reconstruct", "outputs", "remote", "store", "quarantine", "worker", "ray_data"),
    *("progress", "contact_sheet", "job", "command", "parser"),
]

ORDERS = [
    SERVER,
    [
        *SHARED,
        *(f"readers.{name}" for name in READERS),
        *(f"client.{name}" for name in CLIENT),
        "client",
        *(f"console.{name}" for name in CONSOLE),
    ],
    [
        *SERVER[: SERVER.index("models.loading") + 1],
        *(f"readers.{name}" for name in READERS),
        *(f"client.{name}" for name in CLIENT),
        "client",
        *(f"jobs.{name}" for name in JOBS),
    ],
]


TRAINING = [
    *("errors", "machine", "files", "config", "threads", "device", "parallel"),
    *("folder", "pictures", "arrays", "sources", "data", "networks", "likelihoods"),
    *("model", "objective", "optimiser", "schedules", "average", "recording"),
    *("checkpoint", "run", "journal", "figures", "train", "evaluation", "comparison"),
    *("graphs", "half", "parity", "scores", "export"),
]
"""training/, likewise."""


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
    return [p for p in (ROOT / folder).rglob("*.py") if "pb" not in p.parts]


def file_of(name: str) -> Path:
    path = ROOT / "serving" / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("order", ORDERS, ids=["server", "client", "jobs"])
def test_serving_imports_run_one_way(order):
    names = {f"latentd.{name}": position for position, name in enumerate(order)}
    for name, position in names.items():
        for used in imports(file_of(name.removeprefix("latentd."))) & every_module():
            if name.startswith(f"{used}."):
                continue  # `from latentd.client import calls` names the package on the way
            assert used in names, f"{name} imports {used}, which is not of its side"
            assert names[used] < position, f"{name} imports {used} from above"


def every_module() -> set[str]:
    files = [p for p in (ROOT / "serving").rglob("*.py") if "pb" not in p.parts]
    names = {
        ".".join(("latentd", *p.relative_to(ROOT / "serving").with_suffix("").parts)) for p in files
    }
    faces = {f"latentd.{room.name}.__init__" for room in (ROOT / "serving").iterdir()}
    names -= {"latentd.__init__", "latentd.__main__"} | (faces - {"latentd.client.__init__"})
    return {name.removesuffix(".__init__") for name in names}


def test_every_serving_module_has_its_place_in_an_order():
    placed = {f"latentd.{name}" for order in ORDERS for name in order} | {"latentd.flags"}
    assert every_module() == placed


def test_training_imports_run_one_way():
    files = [p for p in modules("training") if p.stem not in ("__init__", "__main__")]
    rooms = {p: p.relative_to(ROOT / "training").parts[0].removesuffix(".py") for p in files}
    assert set(rooms.values()) == set(TRAINING)
    for path, room in rooms.items():
        used = {n.split(".")[2] for n in imports(path) if n.startswith("latentd.training.")}
        assert not used & set(TRAINING[TRAINING.index(room) + 1 :]), path


def test_the_bundle_is_the_only_bridge_between_the_halves():
    shared = {"latentd", "latentd.__version__", "latentd.flags", "latentd.flags.Parser"}
    for path in modules("training"):
        used = {m for m in imports(path) if m.split(".")[0] == "latentd"} - shared
        used = {m for m in used if not f"{m}.".startswith("latentd.training.")}
        bridge = {m for m in used if m.split(".")[1:2] in (["bundle"], ["errors"])}
        assert used <= bridge if path.name == "export.py" else not used, path
    for path in modules("serving"):
        used = {m for m in imports(path) if f"{m}.".startswith(("torch.", "latentd.training."))}
        assert not used, path


def brought_in(*names: str) -> set[str]:
    """The packages that are loaded once these modules are, in a process of its own."""
    code = (
        "import importlib, json, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted(m for m in sys.modules if '.' not in m)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(json.loads(run.stdout))


def test_no_serving_module_brings_in_torch():
    loaded = brought_in(*sorted(every_module()), "latentd.__main__")
    assert not loaded & {"torch", "sklearn", "matplotlib", "onnx"}


def test_the_client_needs_no_server_packages():
    loaded = brought_in("latentd.client")
    assert not loaded & {"onnxruntime", "prometheus_client", "uvloop"}


def test_the_command_line_is_read_without_what_the_commands_need():
    loaded = brought_in("latentd.__main__")
    assert not loaded & {"grpc", "numpy", "onnxruntime", "prometheus_client", "pyarrow"}


def test_a_flag_wins_over_the_environment_and_that_over_the_default():
    def port(flags, environment):
        return settings.load_settings(flags, environment).port

    assert port({}, {}) == 50051
    assert port({}, {"LATENTD_PORT": "1"}) == 1
    assert port({"port": "2"}, {"LATENTD_PORT": "1"}) == 2
    assert port({"port": None}, {"LATENTD_PORT": "1"}) == 1


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("port", "fifty", "--port=fifty: this must be a whole number"),
        ("port", "-1", "--port=-1: this must be 0 to 65535"),
        ("port", "65536", "--port=65536: this must be 0 to 65535"),
        ("max_rows", "0", "--max-rows=0: this must be at least 1"),
        ("provider", "tpu", "--provider=tpu: choose from auto, cuda, cpu"),
        ("reflection", "maybe", "--reflection=maybe: say true or false"),
        ("drain_seconds", "inf", "--drain-seconds=inf: this must be a finite number"),
        ("drain_seconds", "nan", "--drain-seconds=nan"),
    ],
)
def test_a_bad_setting_is_named_with_where_it_came_from(flag, value, said):
    with pytest.raises(ConfigError, match=said):
        settings.load_settings({flag: value}, {})
    variable = "LATENTD_" + flag.upper()
    with pytest.raises(ConfigError, match=variable):
        settings.load_settings({}, {variable: value})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("serve --bundle models", "no flag --bundle. Did you mean --bundles?"),
        ("serve --workers 2 --log-lvl=info", "Did you mean --log-level?"),
        ("batch --inp x", "no flag --inp. Did you mean --input?"),
        ("plan --rat 3", "Did you mean --rate?"),
        ("token someone --scope models", "Did you mean --scopes?"),
        ("client sample --cuont 3", "Did you mean --count?"),
        ("client score x.npy --nothing-like-it", "See latentd client score --help."),
        ("train --ou runs", "no flag --ou. Did you mean --out?"),
        ("export --bundle models", "Did you mean --bundles?"),
        ("evaluate runs --sample 5", "Did you mean --samples?"),
        ("compare --out runs --epoch 5", "Did you mean --epochs?"),
    ],
)
def test_a_flag_that_is_not_there_is_never_taken_for_another(capsys, words, said):
    with pytest.raises(SystemExit) as refused:
        __main__.main(words.split())
    assert refused.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("value", ["", "x", "-1"])
def test_a_variable_is_read_by_the_command_that_uses_it(monkeypatch, capsys, tmp_path, value):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", value)
    monkeypatch.setenv("LATENTD_SERVER", value)
    assert __main__.main(["token", "someone"]) == 0
    assert __main__.main(["serve", "--bundles", str(tmp_path / "none"), "--workers", "1"]) == 78
    assert "JOB_COMPLETION_INDEX" not in capsys.readouterr().err
    job = ["batch", "--input", "x", "--output", str(tmp_path / "y"), "--bundle", "z"]
    assert __main__.main(job) == 78
    assert f"JOB_COMPLETION_INDEX={value}: this must be a whole" in capsys.readouterr().err
    assert __main__.main([*job, "--shard-index", "0"]) == 78
    assert "JOB_COMPLETION_INDEX" not in capsys.readouterr().err
    assert __main__.main(["client", "health"]) == 2
    assert "LATENTD_SERVER: Invalid address" in capsys.readouterr().err


def test_every_setting_explains_itself():
    for field in dataclasses.fields(settings.Settings):
        assert field.metadata["help"].endswith("."), field.name


def test_variables_that_set_nothing_are_found():
    environment = {"LATENTD_PRT": "1", "LATENTD_PORT": "2", "LATENTD_SERVER": "", "PATH": ""}
    assert settings.unknown_env_vars(environment) == ["LATENTD_PRT"]
