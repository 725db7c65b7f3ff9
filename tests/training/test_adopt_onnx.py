"""ONNX graphs of others are adopted and served: answers over the wire are those of their graphs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from latentd import bundle
from latentd.client import Client
from latentd.training.__main__ import main
from latentd.training.adopt import adoption
from latentd.training.readers.image_folder import ImageOptions, read_pictures
from tests.support.adoption import COMMON, FREE, KL, photographs, published, refuse, run
from tests.support.foreign_graphs import byte_pair, kl_pair, vector_pair


def of_net(x: np.ndarray) -> np.ndarray:
    """Bytes as a net from -1 to 1 in NCHW takes them."""
    floats: np.ndarray = (x.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32)
    return floats


def to_bytes(x: np.ndarray) -> np.ndarray:
    levels = (x.transpose(0, 2, 3, 1).astype(np.float64) + 1) * 127.5
    pixels: np.ndarray = levels.round().clip(0, 255).astype(np.uint8)
    return pixels


def assert_pixels(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("opset", [11, 18])
def test_kl_autoencoder_is_served_at_every_size(tmp_path, start_server, opset):
    """NCHW, -1 to 1, moments in one tensor, log-variance clipped, scale and shift."""
    encoder, decoder = kl_pair(tmp_path / "owner", opset=opset)
    folder = published((encoder, decoder), KL, tmp_path / "models")
    manifest = bundle.load(folder).manifest
    assert manifest.x.shape.json == ["h", "w", 3]
    assert manifest.z.shape.json == [4, "h/4", "w/4"]
    assert {axis.multiple_of for axis in manifest.axes.values()} == {4}
    assert (manifest.posterior, manifest.prior) == ("gaussian", None)
    assert manifest.tiles["decoder"].exact
    assert manifest.origin["license"] == "MIT"
    assert set(manifest.origin["files"]) == {"vae_encoder/model.onnx", "vae_decoder/model.onnx"}
    assert manifest.parity
    server = start_server(tmp_path / "models")
    with Client(server.target) as client:
        for size in ((64, 64), (16, 40), (200, 116)):
            x = photographs(*size)
            mean, log_var = np.split(run(encoder, of_net(x))[0], 2, axis=1)
            assert log_var.min() < -6
            assert log_var.max() > 7
            encoding = client.encode(x)
            np.testing.assert_allclose(encoding.mean, (mean - 0.25) * 0.18215, atol=1e-5)
            expected = log_var.clip(-6, 7) + 2 * np.log(0.18215)
            np.testing.assert_allclose(encoding.log_var, expected, rtol=1e-5, atol=1e-5)
            decoded = run(decoder, encoding.mean / np.float32(0.18215) + np.float32(0.25))[0]
            assert_pixels(client.decode(encoding.mean).x, to_bytes(decoded))
            assert_pixels(client.reconstruct(x).x, to_bytes(run(decoder, mean)[0]))


class Encoder(nn.Module):
    """NCHW -> moments, with a norm over the image and attention over its positions."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GroupNorm(2, 8), nn.SiLU())
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, sample: Tensor) -> Tensor:
        h = self.down(sample)
        tokens = h.flatten(2).transpose(1, 2).unsqueeze(1)
        seen = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        moments: Tensor = self.out(h + seen.squeeze(1).transpose(1, 2).reshape(h.shape))
        return moments


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1),
            nn.GroupNorm(2, 8),
            nn.SiLU(),
            nn.Upsample(scale_factor=4),
        )
        self.out = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, latent_sample: Tensor) -> Tensor:
        return torch.tanh(self.out(self.layers(latent_sample)))


@pytest.mark.parametrize("dynamo", [False, True], ids=["TorchScript", "dynamo"])
def test_what_torch_exports_is_adopted(tmp_path, dynamo):
    torch.manual_seed(0)
    nets = {"encoder": Encoder().eval(), "decoder": Decoder().eval()}
    examples = {"encoder": torch.zeros(2, 3, 24, 32), "decoder": torch.zeros(2, 2, 6, 8)}
    outputs = {"encoder": "latent_parameters", "decoder": "sample"}
    paths = {}
    for name, net in nets.items():
        paths[name] = tmp_path / f"{name}.onnx"
        free = {0: "batch", 2: "height", 3: "width"}
        step = 4 if name == "encoder" else 1
        sides = {2: step * torch.export.Dim("a", max=64), 3: step * torch.export.Dim("b", max=64)}
        way: dict[str, Any] = {"dynamic_shapes": [{0: torch.export.Dim("batch", max=64)} | sides]}
        if not dynamo:
            way = {"dynamic_axes": {"in": free, outputs[name]: free}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                *(net, (examples[name],), paths[name]),
                input_names=["in"],
                output_names=[outputs[name]],
                dynamo=dynamo,
                **way,
            )
    sizes = {name: {"min": 8, "max": 64, "default": 32} for name in "hw"}
    card = COMMON | {"range": [-1.0, 1.0], "sizes": sizes, "posterior": "gaussian"}
    folder = published((paths["encoder"], paths["decoder"]), card, tmp_path / "models")
    x = photographs(16, 40)
    with torch.no_grad():
        mean, log_var = nets["encoder"](torch.from_numpy(of_net(x))).chunk(2, dim=1)
        pixels = to_bytes(nets["decoder"](mean).numpy())
    found = run(folder / "encoder.onnx", x)
    np.testing.assert_allclose(found[0], mean.numpy(), atol=1e-5)
    np.testing.assert_allclose(found[1], log_var.numpy(), atol=1e-5)
    assert_pixels(run(folder / "decoder.onnx", mean.numpy())[0], pixels)


def test_nhwc_bytes_and_a_point(tmp_path, start_server):
    """Bytes in and out, latents NHWC, a number per channel for scale and shift."""
    encoder, decoder = byte_pair(tmp_path)
    scale, shift = np.array([0.5, 2, -1, 0.1]), np.array([1.0, 0, 3, -2])
    card = COMMON | {"z_layout": "NHWC", "scale": scale.tolist(), "shift": shift.tolist()}
    folder = published((encoder, decoder), card, tmp_path / "models")
    manifest = bundle.load(folder).manifest
    assert (manifest.x.shape.json, manifest.z.shape.json) == ([16, 16, 3], [4, 4, 4])
    assert (manifest.posterior, manifest.axes) == ("point", {})
    server = start_server(tmp_path / "models")
    with Client(server.target) as client:
        x = photographs(16, 16, count=3)
        code = run(encoder, x)[0]
        mean = client.encode(x).mean
        expected = ((code - shift) * scale).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-3)
        assert_pixels(client.reconstruct(x).x, run(decoder, code)[0])
        assert_pixels(client.decode(mean).x, run(decoder, code)[0])


def test_nhwc_of_any_size(tmp_path):
    """Height and width of latents that are NHWC keep their places."""
    encoder, decoder = byte_pair(tmp_path, side=None)
    card = COMMON | {"z_layout": "NHWC", "sizes": FREE}
    folder = published((encoder, decoder), card, tmp_path / "models")
    assert bundle.load(folder).manifest.z.shape.json == [4, "h/4", "w/4"]
    x = photographs(24, 64)
    code = run(encoder, x)[0]
    mean = run(folder / "encoder.onnx", x)[0]
    assert mean.shape == (2, 4, 6, 16)
    np.testing.assert_allclose(mean, code.transpose(0, 3, 1, 2), rtol=1e-5)
    assert_pixels(run(folder / "decoder.onnx", mean)[0], run(decoder, code)[0])


def test_vectors_with_mean_and_standard_deviation(tmp_path, start_server):
    encoder, decoder = vector_pair(tmp_path)
    card = COMMON | {"mean": [5.0], "std": [2.0], "prior": "standard-normal"}
    published((encoder, decoder), card, tmp_path / "models")
    server = start_server(tmp_path / "models")
    with Client(server.target) as client:
        x = np.random.default_rng(1).normal(5, 2, (4, 6)).astype(np.float32)
        mean, log_var = run(encoder, (x - 5) / 2)
        encoding = client.encode(x)
        np.testing.assert_allclose(encoding.mean, mean, atol=1e-5)
        np.testing.assert_allclose(encoding.log_var, log_var, atol=1e-5)
        decoded = run(decoder, mean)[0] * 2 + 5
        np.testing.assert_allclose(client.decode(mean).x, decoded, atol=1e-5)
        assert client.sample(3, seed=1).x.shape == (3, 6)


def test_mean_and_standard_deviation_of_colors_in_bgr(tmp_path):
    """The bundle's graphs equal the owner's on pixels that a test converts in its own way."""
    encoder, decoder = kl_pair(tmp_path, names=("mean", "log_var"))
    mean, std = np.array([0.3, 0.4, 0.5]), np.array([0.2, 0.3, 0.25])
    normalized = {"mean": mean.tolist(), "std": std.tolist(), "color_order": "BGR"}
    card = COMMON | normalized | {"sizes": {"h": 16, "w": 24}}
    folder = published((encoder, decoder), card, tmp_path / "models")
    x = photographs(16, 24)
    owners = ((x[..., ::-1] / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    expected = run(encoder, owners)
    for found, right in zip(run(folder / "encoder.onnx", x), expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5)
    pixels = run(decoder, expected[0])[0].transpose(0, 2, 3, 1) * std + mean
    right = (pixels * 255).round().clip(0, 255).astype(np.uint8)
    assert_pixels(run(folder / "decoder.onnx", expected[0])[0], right[..., ::-1])
    assert bundle.load(folder).manifest.axes == {}


def test_half_precision_graphs_are_compared_as_such(tmp_path):
    pair = kl_pair(tmp_path / "owner", half=True)
    folder = published(pair, KL | {"scale": 1.0}, tmp_path / "models")
    assert bundle.load(folder).manifest.precision == "float16"
    x = photographs(32, 48)
    mean, _ = np.split(run(pair[0], of_net(x).astype(np.float16))[0].astype(np.float32), 2, axis=1)
    found = run(folder / "encoder.onnx", x)[0]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, mean - 0.25, atol=2e-3)


def test_pictures_of_the_owner(tmp_path):
    pictures = tmp_path / "pictures" / "deeper"
    pictures.mkdir(parents=True)
    card, pair = COMMON | {"z_layout": "NHWC"}, byte_pair(tmp_path)
    refuse("has no pictures: 0 files found", pair, card, tmp_path, images=tmp_path / "pictures")
    refuse("none is not a folder", pair, card, tmp_path, images=tmp_path / "none")
    Image.fromarray(photographs(40, 50, 1)[0]).convert("L").save(pictures / "a.png")
    folder = published(pair, card, tmp_path / "models", images=tmp_path / "pictures")
    with np.load(folder / "golden.npz") as golden:
        x = golden["x"]
    assert (x == x[..., :1]).all(), "golden rows are gray, as the pictures are"
    (pictures / "b.png").write_bytes(b"no picture")
    root = tmp_path / "other"
    refuse(
        "b.png is no picture of a kind that is read", pair, card, root, images=tmp_path / "pictures"
    )
    data = (pictures / "a.png").read_bytes()
    start = data.index(b"IDAT")  # the length is before it
    (pictures / "b.png").write_bytes(data[: start - 4] + bytes([0, 0, 0, 10]) + data[start:])
    refuse("b.png is damaged: broken PNG", pair, card, root, images=tmp_path / "pictures")


def test_pictures_of_the_owner_are_read_as_in_training(tmp_path):
    transparent = np.dstack([photographs(40, 50, 1)[0], np.zeros((40, 50), np.uint8)])
    Image.fromarray(transparent).save(tmp_path / "a.png")
    sixteen_bits = np.arange(2000, dtype=np.uint16).reshape(40, 50) * 32
    Image.fromarray(sixteen_bits).save(tmp_path / "b.png")
    expected = read_pictures(tmp_path, ImageOptions(color="rgb")).pixels
    np.testing.assert_array_equal(adoption._pictures(tmp_path), expected)
    assert (expected[0] == 255).all()


def test_cut_at_the_moments(tmp_path):
    """An encoder that draws is refused, but may be cut before the draw."""
    pair = kl_pair(tmp_path, draws=True)
    card = KL | {"posterior": "gaussian", "tensors": {"moments": "moments"}}
    folder = published(pair, card, tmp_path / "models")
    assert bundle.load(folder).manifest.posterior == "gaussian"


def test_adopt_needs_no_torch(tmp_path):
    """The command runs in a process in which torch cannot be imported."""
    encoder, decoder = byte_pair(tmp_path)
    card = tmp_path / "card.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in COMMON.items()]
    card.write_text("\n".join([*lines, 'z_layout = "NHWC"']))
    words = ["adopt", "--onnx", encoder, decoder, "--card", card, "--bundles", tmp_path / "models"]
    code = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] == 'torch': raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "from latentd.__main__ import main\n"
        f"status = main({[*map(str, words), '--name', 'bytes']!r})\n"
        "assert 'torch' not in sys.modules and 'onnxscript' not in sys.modules\n"
        "sys.exit(status)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert f"published: {tmp_path / 'models' / 'bytes' / '1'}" in ended.stdout


def terminated(*_: Any, **__: Any) -> None:
    signal.raise_signal(signal.SIGTERM)
    for _ in range(10):  # Python looks for signals between two steps
        pass


@pytest.mark.parametrize("moment", ["a check", "publishing"])
def test_sigterm_leaves_nothing(tmp_path, monkeypatch, capsys, moment):
    """Temporary files go, and so does the model's folder."""
    encoder, decoder = byte_pair(tmp_path)
    card, models, temporary = tmp_path / "card.toml", tmp_path / "models", tmp_path / "temporary"
    lines = [f"{key} = {json.dumps(value)}" for key, value in COMMON.items()]
    card.write_text("\n".join([*lines, 'z_layout = "NHWC"']))
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    where, name = (subprocess, "run") if moment == "a check" else (bundle, "_write")
    monkeypatch.setattr(where, name, terminated)
    words = ["adopt", "--onnx", encoder, decoder, "--card", card, "--bundles", models]
    assert main([*map(str, words), "--name", "bytes"]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "\nlatentd: terminated. Nothing was published.\n"
    assert not list(temporary.iterdir())
    assert not list(models.glob("*"))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
