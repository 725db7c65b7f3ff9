"""Bad models in PyTorch, and cards that do not fit them, are refused with what to do."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from latentd.training.adopt import sources
from latentd.training.errors import AdmissionError, TrainingError
from tests.support.owners_nets import CARD, Blocks, published


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
    assert "test_adopt_module_refused.py, line " in message
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
