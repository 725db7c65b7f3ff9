"""The toy bundle and servers for it, as fixtures; the tiers of tests."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentd.runtime.engine import CpuGraph, Graph
from latentd.runtime.io_binding import IOBindingGraph
from latentd.runtime.provider import CPU, CUDA
from tests.support.processes import StartProcess, process_starter
from tests.support.server import PROVIDER, RunningServer, StartServer, server_starter
from tests.support.toy_bundle import PublishToy

# More threads make nets as small as the tests' slower on a busy machine: the threads wait for one
# another, and then shall leave the CPU to other tests. This stands before torch is imported, and
# child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Servers write state files; keep them out of the state folder of this machine's user.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="latentd-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)

# A shell starts background jobs with SIGINT ignored, and child processes would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

E2E = (
    *("deploy", "e2e", "fuzz"),
    *(
        f"jobs/test_{name}.py"
        for name in ("changed_inputs", "faults", "ray", "remote", "row_accounting")
    ),
    *(f"serving/models/test_mutated_{name}.py" for name in ("graphs", "manifests")),
    "serving/test_extras.py",
    *(f"training/test_{name}.py" for name in ("hypotheses", "compare", "evaluate", "export")),
    *(f"training/test_{name}.py" for name in ("export_parity", "killed", "distributed", "resume")),
    *(
        f"training/test_{name}.py"
        for name in (
            "likelihood_graphs",
            "map_export",
            "picture_cache",
            "resume_on_other_device",
            "score_quantiles",
            "table_runs",
            "threads",
        )
    ),
    *(
        f"training/test_adopt_{name}.py"
        for name in ("audio", "diffusers", "likelihood", "module", "module_refused", "onnx")
    ),
    "training/test_adopt_onnx_refused.py",
    *(f"training/test_{name}.py" for name in ("spatial", "spatial_runs", "tracked_runs", "train")),
    "training/test_tune.py",
)
"""Folders and modules that `make test` leaves to `make test-e2e`: they run whole commands or
trainings, or try many mutations."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    paths = [Path(__file__).parent / name for name in E2E]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise pytest.UsageError(f"E2E in tests/conftest.py names {missing}, which do not exist")
    for item in items:
        if any(item.path.is_relative_to(path) for path in paths):
            item.add_marker("e2e")
        for folder, marker in (("explorer", "browser"), ("network", "network")):
            if item.path.is_relative_to(Path(__file__).parent / folder):
                item.add_marker(marker)


@pytest.fixture(autouse=True)
def _log_handlers_as_they_were() -> Iterator[None]:
    """A command that runs in this process configures the root logger, for a stderr that pytest
    closes when the test ends."""
    root = logging.getLogger()
    before, level = set(root.handlers), root.level
    yield
    for handler in set(root.handlers) - before:
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(scope="session")
def publish_toy() -> PublishToy:
    return PublishToy()


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Start servers with settings of the test's own; they stop when it ends."""
    with server_starter() as start:
        yield start


@pytest.fixture
def start_process() -> Iterator[StartProcess]:
    """Start child processes, with Popen's arguments; they end when the test does."""
    with process_starter() as start:
        yield start


@pytest.fixture(scope="module")
def module_servers() -> Iterator[StartServer]:
    """As start_server, for servers that a module's tests share."""
    with server_starter() as start:
        yield start


@pytest.fixture(scope="session")
def provider() -> str:
    """ONNX Runtime's name of the provider that those servers run on."""
    return CUDA if PROVIDER == "cuda" else CPU


@pytest.fixture(scope="session")
def graph_kind() -> type[Graph]:
    """The class of their graphs."""
    return IOBindingGraph if PROVIDER == "cuda" else CpuGraph


@pytest.fixture(scope="session")
def toy_bundles(tmp_path_factory: pytest.TempPathFactory, publish_toy: PublishToy) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    publish_toy(root)
    return root


@pytest.fixture(scope="module")
def listener() -> str:
    """The listener of `server`; tests of the transport and of the RPCs run on each of the two."""
    return "core"


@pytest.fixture(scope="module")
def server(listener: str, toy_bundles: Path, module_servers: StartServer) -> RunningServer:
    """A server of the toy bundle, shared by a module's tests."""
    return module_servers(toy_bundles, listener=listener)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests measured and recorded with record_property("figures", ...)."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            if name == "figures":
                terminalreporter.write_line(f"{report.nodeid}: {value}")
