"""A published autoencoder that its user wrote as a module is adopted, and served as it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from latentd.client import Client
from latentd.errors import InvalidArgument
from tests.support import taef2

CARD = """\
source = "TAEF2, by Ollin Boer Bohan"
license = "MIT"
range = [0.0, 1.0]
scale = 1.0
shift = 0.0
prior = "none"

[sizes]
h = { min = 64, max = 192, default = 128, multiple_of = 8 }
w = { min = 64, max = 192, default = 128, multiple_of = 8 }
"""


@pytest.fixture
def weights() -> Path:
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("LATENTD_DATA", default)) / "taef2"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set LATENTD_DATA to the folder that holds taef2/")
    return folder


@pytest.mark.data  # 50 s of two cores
def test_taef2_is_adopted_and_answers_as_its_reference(tmp_path, weights, start_server):
    shutil.copy(taef2.__file__, tmp_path / "mine.py")
    (tmp_path / "card.toml").write_text(CARD)
    command = [sys.executable, "-m", "latentd", "adopt", "--model", "mine:Taef2", "--weights"]
    command += [f"{part}={weights / f'taef2_{part}.pth'}" for part in ("encoder", "decoder")]
    command += ["--card", "card.toml", "--bundles", "models", "--name", "taef2"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "colors: as declared is best: 0..1 RGB" in ran.stdout
    with (
        np.load(weights / "reference.npz") as reference,
        Client(start_server(tmp_path / "models").target) as client,
    ):
        for name in ("square", "wide", "tall"):
            x, z = reference[f"{name}_x"], reference[f"{name}_z"]
            found = client.encode(x).mean
            assert found.shape == z.shape
            assert np.abs(found - z).max() < 2e-3
            pixels = reference[f"{name}_decoded"].astype(int)
            assert np.abs(client.decode(z).x - pixels).max() <= 1
            assert np.abs(client.reconstruct(x).x - pixels).max() <= 1
        with pytest.raises(
            InvalidArgument, match="taef2 has no prior, so there is no distribution"
        ):
            client.sample(1)
        model = client.get_model()
        assert {graph for graph, tile in model.tiles.items() if not tile.exact} == {
            "encoder",
            "decoder",
        }
        x = reference["tall_x"]
        assert client.reconstruct(x, tiling="always").tiled == "approximate"
