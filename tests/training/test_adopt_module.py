"""Models in PyTorch are adopted as they are in Python, and bad ones are refused."""

from __future__ import annotations

import importlib
import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional

from latentd import bundle, training
from latentd.training.adopt import adopt, sources
from latentd.training.errors import AdmissionError, TrainingError

SIZE = {"min": 32, "max": 128, "default": 64}
CARD: dict[str, Any] = {
    "range": [-1, 1],
    "scale": 2.0,
    "shift": 0.5,
    "prior": "none",
    "license": "MIT",
    "source": "a test",
    "posterior": "point",
    "sizes": {"h": SIZE, "w": SIZE},
}


class Blocks(nn.Module):
    """Means of blocks of pixels, and back: it reconstructs pictures roughly."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 4, 4, bias=False)
        self.up = nn.ConvTranspose2d(4, 3, 4, 4, bias=False)
        for layer, value in ((self.down, 1 / 16), (self.up, 1.0)):
            nn.init.zeros_(layer.weight)
            with torch.no_grad():
                for color in range(3):
                    layer.weight[color, color] = value

    def encode(self, x: Tensor) -> Any:
        return self.down(x)

    def decode(self, z: Tensor) -> Any:
        return self.up(z)


def published(source: Any, root: Path, card: dict[str, Any] = CARD) -> tuple[Path, list[str]]:
    lines: list[str] = []
    folder = adopt(source, card, root / "models", "adopted", report=lines.append)
    return folder, lines


def run(graph: Path, rows: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    arrays: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: rows})
    return arrays


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


class Squeezes(Blocks):
    def decode(self, z: Tensor) -> Any:
        return self.up(z.squeeze())


class Draws(Blocks):
    def encode(self, x: Tensor) -> Any:
        mean = self.down(x)
        return mean + torch.randn_like(mean)


class Drops(Blocks):
    """Dropout that eval() does not turn off."""

    def decode(self, z: Tensor) -> Any:
        return functional.dropout(self.up(z), 0.5)


class NormOfBatch(Blocks):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def encode(self, x: Tensor) -> Any:
        return self.norm(self.down(x))


class NormInTraining(Blocks):
    """An exporter would write a norm for inference in its place."""

    def encode(self, x: Tensor) -> Any:
        return functional.batch_norm(self.down(x), torch.zeros(4), torch.ones(4), training=True)


class Mixes(Blocks):
    def decode(self, z: Tensor) -> Any:
        return self.up(z - z.mean(0, keepdim=True))


class Positions(Blocks):
    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(4, 16, 16))

    def encode(self, x: Tensor) -> Any:
        return self.down(x) + self.positions


MIXES = (
    " mixes the rows of a batch: a row alone gave something else than the same row amid others; "
    "expected the same. Remove what computes over the batch axis"
)


@pytest.mark.parametrize(
    ("net", "sentence"),
    [
        (
            Draws,
            "encode(x) draws random numbers inside: the same rows gave something else the second "
            "time; expected the same. Let it return the mean and the log-variance, or their",
        ),
        (Drops, "decode(z) draws random numbers inside: "),
        (NormOfBatch, f"encode(x){MIXES}"),
        (NormInTraining, f"encode(x){MIXES}"),
        (Mixes, f"decode(z){MIXES}"),
        (Squeezes, "decode(z) takes several rows but not one alone: it gives [3, 128, 96]. Make "),
        (
            Positions,
            "encode(x) is frozen to one size: it takes rows of [3, 64, 64], but fails for "
            "rows of shape [3, 128, 96]: RuntimeError: The size of tensor a",
        ),
    ],
)
def test_bad_models_are_refused_before_their_export(tmp_path, net, sentence):
    with pytest.raises(AdmissionError) as raised:
        published(sources.module(net()), tmp_path)
    assert str(raised.value).startswith(sentence)
    assert not (tmp_path / "models").exists()


class HalvesBright(Blocks):
    def encode(self, x: Tensor) -> Any:
        z = self.down(x)
        if x.mean() > 0.8:
            z = z * 0.5
        return z


class DropsLarge(Blocks):
    def decode(self, z: Tensor) -> Any:
        return self.up(z) if float(z.abs().max()) < 6 else self.up(0 * z)


class CapsByPython(Blocks):
    def encode(self, x: Tensor) -> Any:
        return self.down(x) * min(1.0, np.abs(x.numpy()).max())


@pytest.mark.parametrize(
    ("net", "half", "code"),
    [
        (HalvesBright, "encode(x)", "if x.mean() > 0.8:"),
        (DropsLarge, "decode(z)", "return self.up(z) if float(z.abs().max()) < 6 else self.up("),
        (CapsByPython, "encode(x)", "return self.down(x) * min(1.0, np.abs(x.numpy()).max())"),
    ],
)
def test_code_that_branches_on_values_is_refused(tmp_path, net, half, code):
    """A trace would keep one branch, whatever the rows are."""
    with pytest.raises(AdmissionError) as raised:
        published(sources.module(net()), tmp_path)
    message = str(raised.value)
    assert message.startswith(f"{half} branches or computes in Python on values of its rows, in ")
    assert "test_adopt_module.py, line " in message
    assert f" ({code}" in message
    assert "torch.where instead of if" in message
    assert not (tmp_path / "models").exists()


class Reshapes(Blocks):
    """It runs at each size, but makes of it as many rows of one size as there are."""

    def decode(self, z: Tensor) -> Any:
        return self.up(z.reshape(-1, 4, 16, 16))


class UnitRange(Blocks):
    def decode(self, z: Tensor) -> Any:
        return self.up(z).clamp(0, 1)


class Overflows(Blocks):
    def __init__(self) -> None:
        super().__init__()
        self.half()

    def decode(self, z: Tensor) -> Any:
        return self.up(z * 50000) / 50000


@pytest.mark.parametrize(
    ("net", "sentence"),
    [
        (Reshapes, "decoder.onnx is frozen to one h and w: it runs at h 64, w 64, but at h 32"),
        (UnitRange, "The model reconstructs pictures better as 0..1 RGB than as declared, -1..1"),
        (Overflows, "decoder.onnx overflows float16 at its node "),
    ],
)
def test_bad_models_are_refused_by_their_graphs(tmp_path, net, sentence):
    with pytest.raises(AdmissionError) as raised:
        published(sources.module(net()), tmp_path)
    assert str(raised.value).startswith(sentence)
    assert not (tmp_path / "models").exists()


class ChannelsLast(Blocks):
    def encode(self, x: Tensor) -> Any:
        return self.down(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def decode(self, z: Tensor) -> Any:
        return self.up(z.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Moments(NamedTuple):
    mu: Tensor
    sigma: Tensor


class Deviates(Blocks):
    def encode(self, x: Tensor) -> Any:
        return Moments(self.down(x), torch.full_like(self.down(x), 0.1))


class WritesInPlace(Blocks):
    def encode(self, x: Tensor) -> Any:
        return self.down(x.mul_(0.5)) * 2


def test_code_that_writes_into_its_rows(tmp_path):
    net = WritesInPlace()
    folder, _ = published(sources.module(net), tmp_path)
    assert_answers(folder, lambda x: (Blocks().encode(x),), net.decode)


class AnyChannels(Blocks):
    def encode(self, x: Tensor) -> Any:
        return functional.avg_pool2d(x, 4)


@pytest.mark.parametrize(
    ("net", "change", "words"),
    [
        (Blocks, {"scale": None, "sizes": None}, "the card must: sizes.h, sizes.w, scale. `lat"),
        (Blocks, {"range": None}, r"must: range \(or mean and std\). Without them x is bytes, and"),
        (Blocks, {"channels": 4}, r"fails for rows of shape \[4, 128, 96\]: Runt.*: 4\.$"),
        (
            Blocks,
            {"tensors": {"mean": "x"}},
            "The card has tensors, which are names in ONNX graphs",
        ),
        (Blocks, {"posterior": "gaussian"}, r"decode\(z\) does not take what encode\(x\) gives, "),
        (
            ChannelsLast,
            {"layout": "NHWC", "sizes": {"h": 32, "w": 32}},
            r"and the card must: z_layout. x is NHWC, and z has 4 axes: \[8, 8, 4\] a row\.",
        ),
        (
            Deviates,
            {"posterior": "gaussian"},
            r"encode\(x\) returns a Moments with sigma; expected the log-variance.* 2 \* sigma",
        ),
        (AnyChannels, {}, r"takes several numbers of channels, of 3, 1, 4; give channels in the"),
    ],
)
def test_cards_that_say_too_little_or_wrong_are_refused(tmp_path, net, change, words):
    card = {key: value for key, value in (CARD | change).items() if value is not None}
    with pytest.raises(TrainingError, match=words):
        published(sources.module(net()), tmp_path, card)
