"""The digits are trained, exported, served and called as a user does it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from latentd.__main__ import main as latentd
from latentd.client import Client, DataPoint, SampledPoint
from latentd.training.__main__ import main as latentd_train

pytestmark = pytest.mark.timeout(400)
"""The training takes 20 s of one CPU: minutes on a busy machine."""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> Path:
    """The digits with the default settings, published."""
    folder = tmp_path_factory.mktemp("pipeline")
    run, root = str(folder / "run"), folder / "models"
    assert latentd_train(["train", "--data", "digits", "--out", run]) == 0
    checkpoint = f"{run}/best.pt"
    arguments = ["export", "--checkpoint", checkpoint, "--bundles", str(root), "--name", "digits"]
    assert latentd_train(arguments) == 0
    return root


@pytest.fixture(scope="module")
def digits_server(bundles, module_servers):
    return module_servers(bundles)


@pytest.fixture
def client(digits_server):
    with Client(digits_server.target) as client:
        yield client


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    loaded = load_digits()
    return np.round(loaded.images * 255 / 16).astype(np.uint8), loaded.target


def test_reconstruction_is_nearer_to_its_digit_than_to_class_means(client, digits):
    images, labels = digits
    means = np.stack([images[labels == c].mean(axis=0) for c in range(10)])
    made = client.reconstruct(images[:500]).x.astype(float)

    def distance(others: np.ndarray) -> np.ndarray:
        return np.square(made[:, None] - others).sum(axis=(-2, -1))

    own = distance(images[:500, None])[:, 0]
    foreign = np.where(np.eye(10, dtype=bool)[labels[:500]], np.inf, distance(means[None]))
    assert (own < foreign.min(axis=1)).mean() >= 0.98


def test_interpolation_ends_equal_reconstruct_and_sample(client, digits):
    image = digits[0][:1]
    way = client.interpolate(DataPoint(image[0]), SampledPoint(seed=3, index=2), steps=5)
    ends = [client.reconstruct(image).x[0], client.sample(1, seed=3, offset=2).x[0]]
    assert np.abs(way.x[[0, -1]].astype(int) - np.stack(ends)).max() <= 1


def test_real_digits_score_higher_than_noise(client, digits):
    noise = np.random.default_rng(0).integers(0, 256, (64, 8, 8), np.uint8)
    real = client.score(digits[0][:64], draws=16, seed=0)
    fake = client.score(noise, draws=16, seed=0)
    assert np.median(real.log_likelihood) > np.median(fake.log_likelihood)


def test_sampled_pixels_agree_within_a_level_however_they_are_batched(client):
    whole = client.sample(64, seed=7).x.astype(int)
    single = np.concatenate([client.sample(1, seed=7, offset=i).x for i in range(64)])
    assert np.abs(whole - single).max() <= 1


def test_command_line_writes_an_image_of_samples(digits_server, tmp_path, capsys):
    grid = tmp_path / "grid.png"
    arguments = ["client", "sample", "--server", digits_server.target, "--count", "16"]
    assert latentd([*arguments, "--seed", "7", "--out", str(grid)]) == 0
    assert "seed 7" in capsys.readouterr().out
    pixels = np.asarray(Image.open(grid))
    assert pixels.ndim == 2
    assert pixels.std() > 20, "an empty picture"


@pytest.mark.skipif(not shutil.which("buf"), reason="buf is not installed (npm: @bufbuild/buf)")
def test_reflection_client_gets_an_image(digits_server):
    request = {"count": 1, "seed": 7, "format": "FORMAT_PNG"}
    url = f"http://{digits_server.target}/vae.v1.VaeService/Sample"
    command = ["buf", "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
    run = subprocess.run(
        [*command, "-d", json.dumps(request), url], capture_output=True, text=True, check=True
    )
    (png,) = json.loads(run.stdout)["x"]["images"]["files"]
    assert png.startswith("iVBORw0KGgo")  # the PNG signature in base64
