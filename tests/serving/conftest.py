"""A server that fails to order, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scripted import Running, Scripted

from serving.client import Client


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
