"""Nets of audio, whose rows have any number of samples, are adopted and served."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from latentd import bundle
from latentd.client import Client
from latentd.errors import InvalidArgument
from latentd.training.adopt import adopt, sources
from latentd.training.errors import TrainingError
from tests.support.audio_graphs import CHANNELS, HOP, LATENT_CHANNELS, RATE, audio_pair

CARD: dict[str, Any] = {
    "range": [-1.0, 1.0],
    "clip_log_var": [-3.2, 20.0],
    "scale": 2.0,
    "shift": 0.25,
    "prior": "none",
    "license": "MIT",
    "source": "a test",
    "sample_rate": RATE,
    "sizes": {"t": {"min": 64, "max": 1 << 16, "default": 1024}},
}


def run(graph: Path, rows: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    array: np.ndarray = session.run(None, {session.get_inputs()[0].name: rows})[0]
    return array


def sounds(samples: int, count: int = 2) -> np.ndarray:
    """A tone that changes, and noise: float32 (count, samples, channels)."""
    at = np.arange(samples) / RATE
    phases = np.arange(count * CHANNELS).reshape(count, 1, CHANNELS)
    tones = 0.5 * np.sin(2 * np.pi * 300 * at * (1 + at))[None, :, None] * np.cos(phases)
    noise = 0.1 * np.random.default_rng(samples).standard_normal((count, samples, CHANNELS))
    return (tones + noise).astype(np.float32)


def flipped(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows.swapaxes(1, 2))


@pytest.mark.parametrize("channels_last", [False, True])
def test_audio_of_any_length_is_served_as_its_graphs_compute_it(
    tmp_path, start_server, channels_last
):
    encoder, decoder = audio_pair(tmp_path / "owner", channels_last=channels_last)
    card = CARD | ({"layout": "NTC", "z_layout": "NTC"} if channels_last else {})
    lines: list[str] = []
    route = sources.onnx(encoder, decoder)
    folder = adopt(route, card, tmp_path / "models", "tones", report=lines.append)
    assert any(line == "colors: not judged: x holds audio" for line in lines)
    manifest = bundle.load(folder).manifest
    assert (manifest.x.kind, manifest.x.sample_rate) == ("audio", RATE)
    assert manifest.x.shape.json == ["t", CHANNELS]
    assert manifest.z.shape.json == [LATENT_CHANNELS, f"t/{HOP}"]
    assert manifest.axes["t"].multiple_of == HOP
    assert manifest.tiles["encoder"].exact
    assert manifest.tiles["decoder"].exact
    net = (
        (lambda rows: rows) if channels_last else flipped
    )  # latents and sounds as the net has them
    server = start_server(tmp_path / "models")
    with Client(server.target) as client:
        info = client.get_model()
        assert (info.x, info.default.x.shape) == (manifest.x, (1024, CHANNELS))
        for samples in (64, 1024, 5000):
            x = sounds(samples)
            moments = run(encoder, net(x))
            moments = flipped(moments) if channels_last else moments
            mean, log_var = np.split(moments, 2, axis=1)
            assert log_var.min() < -3.2 < log_var.max()
            found = client.encode(x)
            assert found.mean.shape == (2, LATENT_CHANNELS, samples // HOP)
            np.testing.assert_allclose(found.mean, (mean - 0.25) * 2, atol=1e-5)
            expected = log_var.clip(-3.2, 20) + 2 * np.log(2)
            np.testing.assert_allclose(found.log_var, expected, atol=1e-5)
            decoded = run(decoder, flipped(mean) if channels_last else mean)
            decoded = decoded if channels_last else flipped(decoded)
            for again in (client.decode(found.mean).x, client.reconstruct(x).x):
                assert again.shape == x.shape
                np.testing.assert_allclose(again, decoded, atol=1e-5)


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    """A folder with one model of audio."""
    root: Path = tmp_path_factory.mktemp("audio")
    route = sources.onnx(*audio_pair(root / "owner"))
    adopt(route, CARD, root / "models", "tones", report=lambda _: None)
    return root / "models"


@pytest.fixture(scope="module")
def server(tones, module_servers):
    return module_servers(tones)


def test_wrong_length_is_refused_with_the_nearest(server):
    with Client(server.target) as client:
        for x, said in (
            (sounds(1001), "t is 1001; expected a multiple of 8 from 64 to 65536. .* is 1000."),
            (sounds(8), "t is 8; expected a multiple of 8 from 64 to 65536. .* is 64."),
            (sounds(1024).swapaxes(1, 2), r"expected shape \[t, 2\], got \[2, 1024\]"),
        ):
            with pytest.raises(InvalidArgument, match=said):
                client.encode(x)
        with pytest.raises(InvalidArgument, match=r"t is 32; expected .* is 64"):
            client.decode(np.zeros((1, LATENT_CHANNELS, 4), np.float32))


def test_calls_of_many_lengths_at_once_are_each_answered_as_alone(server):
    rows = [sounds(HOP * (8 + number % 5), 1) for number in range(40)]
    with Client(server.target) as client:
        alone = [client.encode(x).mean for x in rows[:5]]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda x: client.encode(x).mean, rows))
    for number, mean in enumerate(found):
        np.testing.assert_allclose(mean, alone[number % 5], atol=1e-6)


def test_long_sound_is_run_in_chunks(server):
    x = sounds(1 << 15, 1)
    with Client(server.target) as client:
        for whole, tiled in (
            (client.encode(x), client.encode(x, tiling="always")),
            (client.reconstruct(x), client.reconstruct(x, tiling="always")),
        ):
            assert (whole.tiled, tiled.tiled) == ("", "exact")
            name = "mean" if hasattr(whole, "mean") else "x"
            np.testing.assert_allclose(getattr(tiled, name), getattr(whole, name), atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sample_rate": None}, "the card must: sample_rate. "),
        ({"sizes": {}}, "the card must: sizes.t. "),
        ({"range": None}, r"the card must: range \(or mean and std\). "),
        ({"layout": "NCHW"}, "layout = 'NCHW', but .*encoder.onnx takes 3 axes, as for audio"),
        ({"sizes": {"h": 64, "w": 64}}, "has sizes.h, but .* takes 3 axes, as for audio"),
        (
            {"sizes": {"t": {"min": 60, "max": 600, "default": 120}}},
            "sizes.t.min is 60; expected a multiple of 8, as the encoder was found to need",
        ),
    ],
)
def test_card_that_does_not_fit_audio_is_refused_by_key(tmp_path, changed, said):
    card = {k: v for k, v in (CARD | changed).items() if v is not None}
    route = sources.onnx(*audio_pair(tmp_path / "owner"))
    with pytest.raises(TrainingError, match=said):
        adopt(route, card, tmp_path / "models", "tones", report=lambda _: None)
    assert not (tmp_path / "models").exists()


def test_audio_without_a_range_is_normalized(tmp_path):
    encoder, decoder = audio_pair(tmp_path / "owner")
    card = {k: v for k, v in CARD.items() if k != "range"} | {"mean": 0.5, "std": [2.0, 4.0]}
    route = sources.onnx(encoder, decoder)
    folder = adopt(route, card, tmp_path / "models", "ecg", report=lambda _: None)
    manifest = bundle.load(folder).manifest
    assert manifest.x.range == (-np.inf, np.inf)
    session = ort.InferenceSession(folder / bundle.ENCODER, providers=["CPUExecutionProvider"])
    x = sounds(512)
    mean = session.run(["mean"], {"x": x})[0]
    given = flipped((x - 0.5) / np.float32([2, 4]))
    expected = (np.split(run(encoder, given), 2, axis=1)[0] - 0.25) * 2
    np.testing.assert_allclose(mean, expected, atol=1e-5)
