"""A real server for the fuzz tests."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def running(toy_bundles, module_servers):
    return module_servers(toy_bundles, queue_rows=20_000)
