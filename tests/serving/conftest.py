"""A server that fails to order, and a client of it; graphs bound as on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hostmemory import HostMemory, Stream
from opened import BATCH, Opened, prepared_with
from scripted import Running, Scripted

from serving.client import Client
from serving.runtime.bound import BoundGraph
from serving.runtime.engine import Engine, Graph, Signature
from serving.settings import Settings


@pytest.fixture
def scripted() -> Iterator[Running]:
    """A scripted server that is up until the test ends."""
    running = Running()
    yield running
    running.stop()


@pytest.fixture
def script(scripted: Running) -> Scripted:
    """What that server does: append to its `faults`."""
    return scripted.script


@pytest.fixture
def client(scripted: Running) -> Iterator[Client]:
    """A client of that server."""
    with Client(scripted.target) as client:
        yield client


@pytest.fixture
def bound(monkeypatch) -> list[BoundGraph]:
    """Every graph that is loaded from now on: bound, as on a GPU, but on the CPU provider."""
    loaded: list[BoundGraph] = []

    def load(self: Engine, model: bytes, signature: Signature, threads: int) -> Graph:
        name, dtype, shape = signature.input
        session, takes = self._session(model, threads), (name, (dtype, shape))
        graph = BoundGraph(session, takes, dict(signature.outputs), HostMemory(), Stream(), False)
        loaded.append(graph)
        return graph

    monkeypatch.setattr(Engine, "load", load)
    return loaded


@pytest.fixture
def open_model(toy_bundles, bound) -> Iterator[Callable[..., Opened]]:
    """Open models of bound graphs, with settings of the test's own; they close when it ends."""
    opened: list[Opened] = []

    def open_(**chosen: object) -> Opened:
        settings = Settings(max_batch_rows=BATCH, **chosen)
        opened.append(Opened(prepared_with(toy_bundles, settings), settings))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()
