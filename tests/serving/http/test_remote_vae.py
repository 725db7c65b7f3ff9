"""diffusers' remote VAE: what it refuses. tests/e2e/test_remote_vae.py has diffusers itself."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.spatial_bundle import publish_spatial
from tests.support.web import request


@pytest.fixture(scope="module")
def server(tmp_path_factory, module_servers):
    root = tmp_path_factory.mktemp("spatial")
    publish_spatial(root)
    return module_servers(root, http_port=0)


@pytest.mark.parametrize("factors", ["scaling_factor=1e39", "scaling_factor=1&shift_factor=1e300"])
def test_latents_beyond_float32_are_refused(server, factors):
    image, shape = np.ones((1, 3, 16, 16), np.float32), "shape=1&shape=3&shape=16&shape=16"
    found = request(server, f"/vae/spatial/encode?{shape}&{factors}", image.tobytes())
    assert (found.status, found.error.split(":")[0]) == (400, "scaling_factor, shift_factor")


@pytest.mark.filterwarnings("error")
def test_latents_that_overflow_are_refused_without_a_warning(server):
    latents, shape = np.ones((1, 4, 2, 2), np.float32), "shape=1&shape=4&shape=2&shape=2"
    path = f"/vae/spatial/decode?{shape}&scaling_factor=1e-320"
    found = request(server, path, latents.tobytes())
    assert (found.status, "row 0 holds NaN or infinity" in found.error) == (400, True)


def test_shape_of_many_lengths_is_refused(server):
    shape = "&".join(["shape=2147483647"] * 900)
    found = request(server, f"/vae/spatial/encode?{shape}", b"x")
    assert (found.status, found.error) == (400, "body.shape: 900 lengths sent, too many.")


def test_seed_without_a_draw_is_refused(server):
    found = request(server, "/vae/spatial/encode?seed=7", b"x")
    assert (found.status, found.error.split(":")[0]) == (400, "seed")
    assert "sample_mode=sample" in found.error
