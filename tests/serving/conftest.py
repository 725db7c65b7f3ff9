"""A server that fails to order and its client; graphs bound as on a GPU; what a GPU was asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from latentd.client import Client
from latentd.runtime.engine import Graph, SessionFactory
from latentd.runtime.io_binding import IOBindingGraph
from latentd.runtime.signature import Signature
from latentd.settings import Settings
from tests.support.bound_model import BATCH, BoundModel, load_toy
from tests.support.fake_cuda import COUNTERS, Counters
from tests.support.fake_device import HostDevice, Stream
from tests.support.fake_server import FakeServer, ScriptedService


@pytest.fixture
def scripted() -> Iterator[FakeServer]:
    """A scripted server that is up until the test ends."""
    running = FakeServer()
    yield running
    running.stop()


@pytest.fixture
def script(scripted: FakeServer) -> ScriptedService:
    """What that server does: append to its `faults`."""
    return scripted.script


@pytest.fixture
def client(scripted: FakeServer) -> Iterator[Client]:
    """A client of that server."""
    with Client(scripted.target) as client:
        yield client


@pytest.fixture
def counters() -> Counters:
    """The counters of the fake CUDA libraries; a real GPU has none."""
    path = os.environ.get(COUNTERS)
    if not path:
        pytest.skip("only the fake CUDA libraries count calls")
    return Counters(Path(path))


@pytest.fixture
def bound(monkeypatch) -> list[IOBindingGraph]:
    """Every graph that is loaded from now on: bound to buffers, as on a GPU, but on the CPU."""
    loaded: list[IOBindingGraph] = []

    def load(self: SessionFactory, model: bytes, signature: Signature, threads: int) -> Graph:
        session = self._session(model, threads)
        graph = IOBindingGraph(session, signature, HostDevice(), Stream(), False)
        loaded.append(graph)
        return graph

    monkeypatch.setattr(SessionFactory, "load", load)
    return loaded


@pytest.fixture
def open_model(toy_bundles, bound) -> Iterator[Callable[..., BoundModel]]:
    """Opens models of bound graphs, with the test's settings; they close when the test ends."""
    opened: list[BoundModel] = []

    def open_(**chosen: object) -> BoundModel:
        settings = Settings(max_batch_rows=BATCH, **chosen)
        opened.append(BoundModel(load_toy(toy_bundles, settings), settings))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()
