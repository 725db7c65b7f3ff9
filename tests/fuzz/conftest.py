"""A real server for the fuzz tests."""

from __future__ import annotations

import pytest

from tests.support.spatial_bundle import publish_spatial
from tests.support.tiled_bundle import EXACT


@pytest.fixture(scope="module")
def running(tmp_path_factory, publish_toy, module_servers):
    """Of one model whose lengths are fixed, and one that takes images of any size."""
    root = tmp_path_factory.mktemp("bundles")
    publish_toy(root)
    publish_spatial(root, likelihood=True, tiles={"encoder": EXACT, "decoder": EXACT})
    return module_servers(root, queue_rows=20_000, default_model="toy")
