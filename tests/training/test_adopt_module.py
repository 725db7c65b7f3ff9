"""Models in PyTorch are adopted as they are in Python."""

from __future__ import annotations

import importlib
import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional

from latentd import bundle, training
from latentd.training.adopt import adopt, sources
from latentd.training.errors import AdmissionError, TrainingError
from tests.support.adoption import run
from tests.support.owners_nets import CARD, Blocks, published


def assert_answers(
    folder: Path, encode: Callable[[Tensor], Any], decode: Callable[[Tensor], Any]
) -> None:
    """The bundle's encoder gives these means and log-variances, and its decoder these pixels."""
    x = load_sample_images().images[0][None, 40:104, 90:250]
    with torch.no_grad():
        given = encode(torch.from_numpy(x.transpose(0, 3, 1, 2) / np.float32(127.5) - 1))
        pixels = decode(given[0])
    found = run(folder / "encoder.onnx", x)
    assert len(found) == len(given)
    np.testing.assert_allclose(found[0], (given[0].numpy() - 0.5) * 2, atol=1e-5)
    for one, right in zip(found[1:], given[1:], strict=True):
        np.testing.assert_allclose(one, right.numpy() + 2 * np.log(2), atol=1e-5)
    levels = ((pixels.numpy() + 1) * 127.5).round().clip(0, 255).transpose(0, 2, 3, 1)
    decoded = run(folder / "decoder.onnx", found[0])[0]
    assert np.abs(decoded.astype(int) - levels).max() <= 1


class Layers(Blocks):
    """A distribution; what differs between training and evaluation; norms and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5), nn.GroupNorm(2, 4))
        self.norms[0].running_mean += 0.1
        self.deviation = nn.Conv2d(4, 4, 1)

    def encode(self, x: Tensor) -> Normal:
        h = self.down(x)
        tokens = self.norms(h).flatten(2).transpose(1, 2).unsqueeze(1)
        seen = functional.scaled_dot_product_attention(tokens, tokens, tokens).squeeze(1)
        return Normal(
            h, functional.softplus(self.deviation(seen.transpose(1, 2).reshape(h.shape))) + 0.1
        )


def test_a_module_that_gives_distributions(tmp_path):
    torch.manual_seed(0)
    net = Layers()
    card = {key: value for key, value in CARD.items() if key != "posterior"}
    folder, lines = published(sources.module(net), tmp_path, card)
    assert lines[0] == (
        "eval: used in evaluation mode, though in training mode were BatchNorm2d, Dropout"
    )
    assert lines[1].startswith("export: encode(x) by torch.export, ")
    assert all(module.training for module in net.modules()), "the caller's module is as it was"
    manifest = bundle.load(folder).manifest
    assert manifest.posterior == "gaussian"
    assert manifest.z.shape.json == [4, "h/4", "w/4"]
    assert (manifest.origin["route"], manifest.origin["model"]) == ("module", "Layers")
    net.eval()

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        normal = net.encode(x)
        return normal.mean, normal.variance.log()

    assert_answers(folder, encode, net.decode)


def test_the_example_of_the_package(tmp_path, monkeypatch):
    """A model of one size."""
    monkeypatch.chdir(tmp_path)
    _, begin, example = (training.adopt.__doc__ or "").partition("    card = ")
    code = textwrap.dedent((begin + example).partition("`sources` has")[0])
    exec(code, {"adopt": adopt, "sources": sources, "vae": Blocks()})
    manifest = bundle.load(tmp_path / "models" / "mine" / "1").manifest
    assert (manifest.x.shape.json, manifest.z.shape.json) == ([64, 64, 3], [4, 16, 16])
    assert manifest.posterior == "point"


OWN_MODULE = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 4, 4), nn.ConvTranspose2d(4, 3, 4, 4)

    def encode(self, x):
        return self.down(x)

    def decode(self, z):
        return self.up(z)


def make():
    return Net()
"""


def test_the_command_with_a_module_of_the_current_folder(tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("own_module.py").write_text(OWN_MODULE)
    lines = [f"{k} = {json.dumps(v)}" for k, v in CARD.items() if k not in ("sizes", "range")]
    Path("card.toml").write_text("\n".join([*lines, "range = [-1, 1]", "sizes = {h = 32, w = 48}"]))
    words = ["adopt", "--model", "own_module:make", "--card", "card.toml", "--bundles", "models"]
    trained = importlib.import_module("own_module").make().state_dict()

    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, ("it ran",)

    torch.save({"down.weight": Code()}, "code.pth")
    status, _, err = cli(*words, "--name", "own", "--weights", "code.pth")
    assert status == 1
    assert "code.pth would run code when it is read, posix.mkdir, so it was not read" in err
    assert not Path("it ran").exists()
    assert not Path("models").exists()
    torch.save({"state_dict": {f"vae.{k}": v for k, v in trained.items()}}, "last.ckpt")
    status, out, err = cli(*words, "--name", "own", "--weights", "last.ckpt")
    assert status == 0, err
    assert "weights: 4 tensors of last.ckpt into Net, from its state_dict, without the pre" in out
    manifest = bundle.load(tmp_path / "models" / "own" / "1").manifest
    assert (manifest.origin["route"], manifest.origin["model"]) == ("model", "own_module:make")
    assert set(manifest.origin["files"]) == {"last.ckpt"}


def test_two_functions_of_which_one_only_torchscript_exports(tmp_path, capsys):
    """They use a module that they do not own, and one asks what values its weights have."""
    net = Blocks()

    def encode(x: Tensor) -> Tensor:
        latents: Tensor = net.down(x)
        return latents if net.down.weight.mean() < 9 else 0 * latents

    folder, lines = published(sources.pair(encode, net.decode), tmp_path)
    assert lines[0].startswith("export: encode(x) not by torch.export: ")
    assert lines[1].startswith("export: encode(x) by TorchScript, ")
    assert capsys.readouterr() == ("", ""), "the exporters' own output"
    assert_answers(folder, lambda x: (encode(x),), net.decode)


def test_vectors_and_their_moments(tmp_path):
    """The number of values is that of the first layer that takes them, and so is the posterior."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(7, 6), nn.Linear(3, 7)

        def encode(self, x: Tensor) -> Any:
            return self.first(x)

        def decode(self, z: Tensor) -> Any:
            return self.last(z)

    unknown = ("sizes", "range", "posterior")
    card = {key: value for key, value in CARD.items() if key not in unknown}
    folder, _ = published(sources.module(Flat()), tmp_path, card)
    manifest = bundle.load(folder).manifest
    assert (manifest.x.shape.json, manifest.z.shape.json) == ([7], [3])
    assert manifest.posterior == "gaussian"


class Gaussian(Blocks):
    """p(x | z) has a deviation for each color."""

    def __init__(self) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.tensor([-2.0, -1.5, -1.0]).reshape(3, 1, 1))

    def decode(self, z: Tensor) -> Any:
        mean = self.up(z)
        return mean, self.log_std.expand_as(mean)


def test_a_decoder_that_gives_mean_and_width(tmp_path):
    card = CARD | {"likelihood": {"name": "gaussian", "std": "log_std"}, "range": [0, 1]}
    folder, _ = published(sources.module(Gaussian()), tmp_path, card)
    likelihood = bundle.load(folder).manifest.likelihood
    assert likelihood is not None
    assert likelihood.parameters == ("mean", "log_std")
    z = np.random.default_rng(0).random((2, 4, 8, 12), np.float32)
    _, params = run(folder / "decoder.onnx", z)
    assert params.shape == (2, 2, 32, 48, 3)
    np.testing.assert_allclose(params[:, 1].mean((0, 1, 2)), [-2, -1.5, -1], rtol=1e-5)
    with pytest.raises(TrainingError, match=r"two tensors, .*; but the card has no likelihood"):
        published(sources.module(Gaussian()), tmp_path)


class Decomposes(Blocks):
    """By an operator that ONNX lacks."""

    def encode(self, x: Tensor) -> Any:
        left, values, right = torch.linalg.svd(self.down(x), full_matrices=False)
        return left * values[..., None, :] @ right


def test_a_module_that_no_exporter_exports(tmp_path, capfd):
    with pytest.raises(AdmissionError) as raised:
        published(sources.module(Decomposes()), tmp_path)
    message = str(raised.value)
    assert message.startswith(
        "encode(x) cannot be exported to ONNX; torch.export: No ONNX function found for "
    )
    assert "; TorchScript: Exporting the operator 'aten::linalg_svd' to ONNX opset" in message
    assert capfd.readouterr() == ("", "")


class WritesInPlace(Blocks):
    def encode(self, x: Tensor) -> Any:
        return self.down(x.mul_(0.5)) * 2


def test_code_that_writes_into_its_rows(tmp_path):
    net = WritesInPlace()
    folder, _ = published(sources.module(net), tmp_path)
    assert_answers(folder, lambda x: (Blocks().encode(x),), net.decode)
