"""`latentd client ... --tiling`: large rows in tiles, and how they were run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.tiled_bundle import APPROXIMATE, images, publish_tiled

Done = Callable[..., str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, module_servers: Any) -> Any:
    root = tmp_path_factory.mktemp("bundles")
    publish_tiled(root)
    publish_tiled(root, "blended", tile=APPROXIMATE)
    return module_servers(root, default_model="tiled", max_batch_latency_ms=5)


def test_each_call_takes_tiling_and_tells_how_rows_were_run(done: Done) -> None:
    Image.fromarray(images(1, 72, 136)[0]).save("large.png")
    for words in (
        ("encode", "large.png", "--out", "z.npz"),
        ("decode", "z.npz", "--out", "x.npy"),
        ("reconstruct", "large.png"),
        ("sample", "--count", "1", "--size", "72x136"),
        ("stream", "--count", "1", "--size", "72x136", "--out", "s.npy"),
        ("interpolate", "--start", "large.png", "--end", "large.png", "--steps", "2"),
    ):
        said = done(*words, "--tiling", "always")
        assert said.endswith("Rows were run in tiles: exact.\n"), words
    assert np.load("x.npy").shape == (1, 72, 136, 3)
    assert Path("s.npy").exists()
    approximate = done("reconstruct", "large.png", "--model", "blended", "--tiling", "always")
    assert approximate.endswith("Rows were run in tiles: approximate.\n")
    assert "tiles" not in done("reconstruct", "large.png", "--tiling", "when-needed")


def test_model_is_described_with_its_tiles(done: Done) -> None:
    assert "  encoder tiles  64 x 64, exact" in done("model").splitlines()
    assert "  decoder tiles  64 x 64, 30 dB" in done("model", "--model", "blended").splitlines()
    described = json.loads(done("model", "--model", "blended", "--json"))
    assert described["tiles"]["decoder"]["decibels"] == 30
