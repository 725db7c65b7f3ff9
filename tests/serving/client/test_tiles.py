"""Large rows in tiles, through the client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentd.client import Client
from latentd.errors import InvalidArgument
from tests.support.spatial_bundle import publish_spatial
from tests.support.tiled_bundle import APPROXIMATE, EXACT, images, publish_tiled


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, module_servers: Any) -> Iterator[Client]:
    root: Path = tmp_path_factory.mktemp("bundles")
    publish_tiled(root)
    publish_tiled(root, "blended", tile=APPROXIMATE)
    publish_spatial(root)
    with Client(
        module_servers(root, default_model="tiled", max_batch_latency_ms=5).target
    ) as client:
        yield client


def test_results_tell_how_they_were_run(client: Client) -> None:
    x, sizes = images(1, 72, 136), {"h": 72, "w": 136}
    encoding = client.encode(x, tiling="always")
    calls = {
        "encode": encoding,
        "decode": client.decode(encoding.mean, tiling="always"),
        "sample": client.sample(1, sizes=sizes, tiling="always"),
        "stream_samples": next(client.stream_samples(1, sizes=sizes, tiling="always")),
        "reconstruct": client.reconstruct(x, tiling="always"),
    }
    assert {name: result.tiled for name, result in calls.items()} == dict.fromkeys(calls, "exact")
    assert "tiled=exact" in repr(calls["sample"]).replace("'", "")
    assert client.encode(x, tiling="when-needed").tiled == client.encode(x).tiled == ""
    assert client.reconstruct(x, model="blended", tiling="always").tiled == "approximate"
    np.testing.assert_allclose(encoding.mean, client.encode(x).mean, atol=1e-5)


def test_model_info_has_the_tiles(client: Client) -> None:
    assert client.get_model().tiles == {"encoder": EXACT, "decoder": EXACT}
    assert client.get_model(model="blended").tiles["decoder"] == APPROXIMATE
    assert client.get_model(model="spatial").tiles == {}


def test_tiling_is_refused_before_sending(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="spatial was made without a measurement of tiles"):
        client.encode(images(1, 72, 136), model="spatial", tiling="always")
    with pytest.raises(InvalidArgument, match='Use "when-needed" or "always"'):
        client.encode(images(1, 72, 136), tiling="sometimes")
