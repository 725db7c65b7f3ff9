"""A server with an HTTP port."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.server import RunningServer, StartServer


@pytest.fixture(scope="module")
def server(toy_bundles: Path, module_servers: StartServer) -> RunningServer:
    return module_servers(toy_bundles, http_port=0)
