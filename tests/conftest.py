"""A toy bundle whose answers prove whose rows they are, and real servers to serve it."""

from __future__ import annotations

import asyncio
import atexit
import io
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

from latentd import bundle, settings
from latentd.bundle import DataSpec, Manifest
from latentd.process.server import Server
from latentd.runtime.engine import CpuGraph, Graph
from latentd.runtime.io_binding import IOBindingGraph
from latentd.runtime.provider import CPU, CUDA

# Nets as small as the tests' gain nothing by more threads, which on a machine with other work wait
# for one another: trainings crawl. Said before torch is imported, and to all that the tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Servers leave notes on what they load: not where those of this machine's user are.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="latentd-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)

# Whoever runs the tests in the background ignores SIGINT, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

PROVIDER = os.environ.get("LATENTD_TEST_PROVIDER", "cpu")
"""What the servers run on that tests start in their own process: all tests hold on `cuda` too."""

TOY_SHAPE = (4, 4)
TOY_LATENT = 16


def _graph(name: str, levels: int, nodes: list, x: tuple, outputs: list[tuple]) -> bytes:
    def value(name: str, kind: int, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, ["batch", *shape])

    constants = {
        "levels": np.float32(levels),
        "zero": np.float32(0),
        "one": np.float32(1),
        "two": np.float32(-2),
        "flat": np.array([-1, TOY_LATENT], np.int64),
        "image": np.array([-1, *TOY_SHAPE], np.int64),
        "parameters": np.array([-1, 1, *TOY_SHAPE], np.int64),
    }
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        name,
        [value(*x)],
        [value(*output) for output in outputs],
        [from_array(np.asarray(v), k) for k, v in constants.items() if k in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def toy_files(levels: int = 255) -> dict[str, bytes]:
    """An encoder and a decoder that are each other's inverse: Reconstruct gives x back exactly.

    mean = x / levels, log_var = -2; x = round(levels z), logits = z. Graphs of other levels give
    themselves away: no answer can be from the one and the other.
    """
    encoder = _graph(
        "toy_encoder",
        levels,
        [
            helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["floats", "levels"], ["unit"]),
            helper.make_node("Reshape", ["unit", "flat"], ["mean"]),
            helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", "two"], ["log_var"]),
        ],
        ("x", TensorProto.UINT8, TOY_SHAPE),
        [
            ("mean", TensorProto.FLOAT, (TOY_LATENT,)),
            ("log_var", TensorProto.FLOAT, (TOY_LATENT,)),
        ],
    )
    decoder = _graph(
        "toy_decoder",
        levels,
        [
            helper.make_node("Reshape", ["z", "parameters"], ["params"]),
            helper.make_node("Clip", ["z", "zero", "one"], ["unit"]),
            helper.make_node("Mul", ["unit", "levels"], ["scaled"]),
            helper.make_node("Round", ["scaled"], ["whole"]),
            helper.make_node("Cast", ["whole"], ["bytes"], to=TensorProto.UINT8),
            helper.make_node("Reshape", ["bytes", "image"], ["x"]),
        ],
        ("z", TensorProto.FLOAT, (TOY_LATENT,)),
        [("x", TensorProto.UINT8, TOY_SHAPE), ("params", TensorProto.FLOAT, (1, *TOY_SHAPE))],
    )
    x = np.arange(2 * TOY_LATENT, dtype=np.uint8).reshape(2, *TOY_SHAPE)
    mean = (x.astype(np.float32) / levels).reshape(2, TOY_LATENT)
    golden = io.BytesIO()
    np.savez(
        golden,
        x=x,
        mean=mean,
        log_var=np.full_like(mean, -2),
        z=mean,
        decoded_x=x,
        params=mean.reshape(2, 1, *TOY_SHAPE),
    )
    return {
        bundle.ENCODER: encoder,
        bundle.DECODER: decoder,
        bundle.GOLDEN: golden.getvalue(),
    }


def toy_manifest(model: str = "toy", family: str = "vae") -> Manifest:
    return Manifest(
        model=model,
        x=DataSpec("image", TOY_SHAPE, "uint8", (0.0, 255.0)),
        latent_size=TOY_LATENT,
        likelihood="bernoulli",
        family=family,
        opset=18,
        preprocessing="x / 255 inside the graph",
        parity={},
    )


class PublishToy:
    """Publish the toy bundle, whole or with some files replaced."""

    def __call__(
        self,
        root: Path,
        model: str = "toy",
        family: str = "vae",
        levels: int = 255,
        **replaced: bytes,
    ) -> Path:
        files = {name.replace("_", "."): data for name, data in replaced.items()}
        files = toy_files(levels) | files
        return bundle.publish(root, toy_manifest(model, family), files)


@pytest.fixture(scope="session")
def publish_toy() -> PublishToy:
    return PublishToy()


class RunningServer:
    """A server in this process, in an event loop and thread of its own, for callers as anywhere."""

    def __init__(self, chosen: settings.Settings) -> None:
        self._settings = chosen
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._live, name="test-server")
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        self.target = f"127.0.0.1:{self.server.port}"

    def _live(self) -> None:
        async def life() -> None:
            self.loop = asyncio.get_running_loop()
            self.server = Server(self._settings)
            try:
                await self.server.start()
            except BaseException as error:
                self._failure = error
                await self.server.stop()
                return
            finally:
                self._ready.set()
            await self.server.stopping()
            await self.server.stop()

        asyncio.run(life())

    def stop(self) -> None:
        """Stop and wait for it; again is nothing."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.server.request_stop, False)
            self._thread.join()

    def look(self) -> None:
        """Have it look for new versions now, as its watcher would after a while."""
        self.server.repository.look()
        self.server.repository.settle()

    def metric(self, name: str, **labels: str) -> float:
        """A sample's value as a scrape would give it now; 0 where there is none yet."""
        return self.server.metrics.registry.get_sample_value(name, labels) or 0.0

    def calls(self, method: str) -> int:
        """How many calls of a method have ended, whatever their status."""
        samples = [s for m in self.server.metrics.registry.collect() for s in m.samples]
        ours = [s for s in samples if s.name == "latentd_requests_total"]
        return int(sum(s.value for s in ours if s.labels["method"] == method))


StartServer = Callable[..., RunningServer]


@contextmanager
def server_starter() -> Iterator[StartServer]:
    with ExitStack() as running:

        def start(bundles: Path, **chosen: object) -> RunningServer:
            flags = {"bundles": bundles, "port": 0, "metrics_port": 0, "provider": PROVIDER}
            # A trial takes half a second; tests/e2e has them, and those of versions that need one.
            flags["load_trial"] = "false"
            texts = {name: str(value) for name, value in (flags | chosen).items()}
            server = RunningServer(settings.load_settings(texts, environment={}))
            running.callback(server.stop)
            return server

        yield start


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


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Start servers with settings of the test's own; they stop when it ends."""
    with server_starter() as start:
        yield start


@pytest.fixture(scope="module")
def module_servers() -> Iterator[StartServer]:
    """As start_server, for servers that a module's tests share."""
    with server_starter() as start:
        yield start


@pytest.fixture(scope="session")
def provider() -> str:
    """ONNX Runtime's name of what those servers run on."""
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


@pytest.fixture(scope="module", params=["core", "aio"])
def server(
    request: pytest.FixtureRequest, toy_bundles: Path, module_servers: StartServer
) -> RunningServer:
    """A server of the toy bundle, shared by a module's tests; all hold for either listener."""
    return module_servers(toy_bundles, listener=request.param)


E2E = ("deploy", "e2e", "fuzz")
"""Folders of tests that `make test` leaves to `make test-e2e`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.path.relative_to(here).parts[0] in E2E:
            item.add_marker("e2e")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests counted, those that say so by record_property("figures", ...)."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            if name == "figures":
                terminalreporter.write_line(f"{report.nodeid}: {value}")
