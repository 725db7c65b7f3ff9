"""Graphs of a small strided convolutional VAE of stereo sounds that latentd did not train."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from onnx import TensorProto, helper

from tests.support.foreign_graphs import save

HOP: Final = 8  # samples of one position of a latent
CHANNELS: Final = 2
LATENT_CHANNELS: Final = 4
RATE: Final = 8000
_HIDDEN: Final = 6
_TO_LAST: Final = (0, 2, 1)  # and back


def audio_pair(folder: Path, *, channels_last: bool = False) -> tuple[Path, Path]:
    """Floats of any number of samples; mean and log-variance in one tensor.

    channels_last: of x and of z; else they are first
    """
    random = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        values: np.ndarray = (0.4 * random.standard_normal(shape)).astype(np.float32)
        return values

    def around(nodes: list, given: str, taken: str) -> list:
        """The nodes, which have channels first, in this layout."""
        first, last = nodes[0].input[0], nodes[-1].output[0]
        order = _TO_LAST if channels_last else (0, 1, 2)
        return [
            helper.make_node("Transpose", [given], [first], perm=order),
            *nodes,
            helper.make_node("Transpose", [last], [taken], perm=order),
        ]

    def shape(channels: int, length: str) -> list[int | str]:
        return ["n", length, channels] if channels_last else ["n", channels, length]

    float_ = TensorProto.FLOAT
    encoder = save(
        folder / "encoder.onnx",
        around(
            [
                helper.make_node("Conv", ["x", "w1"], ["a"], strides=[4], pads=[2, 2]),
                helper.make_node("Tanh", ["a"], ["b"]),
                helper.make_node("Conv", ["b", "w2", "b2"], ["c"], strides=[2], pads=[1, 1]),
            ],
            "audio",
            "moments",
        ),
        {"audio": (float_, shape(CHANNELS, "samples"))},
        {"moments": (float_, shape(2 * LATENT_CHANNELS, "frames"))},
        {
            "w1": weights(_HIDDEN, CHANNELS, 8),
            "w2": weights(2 * LATENT_CHANNELS, _HIDDEN, 4),
            "b2": np.repeat(np.float32([0, -3]), LATENT_CHANNELS),
        },
    )
    decoder = save(
        folder / "decoder.onnx",
        around(
            [
                helper.make_node("ConvTranspose", ["z", "w1"], ["a"], strides=[2], pads=[1, 1]),
                helper.make_node("Tanh", ["a"], ["b"]),
                helper.make_node("ConvTranspose", ["b", "w2"], ["c"], strides=[4], pads=[2, 2]),
            ],
            "latent",
            "decoded",
        ),
        {"latent": (float_, shape(LATENT_CHANNELS, "frames"))},
        {"decoded": (float_, shape(CHANNELS, "samples"))},
        {"w1": weights(LATENT_CHANNELS, _HIDDEN, 4), "w2": weights(_HIDDEN, CHANNELS, 8)},
    )
    return encoder, decoder
