"""Graphs of models that latentd did not train, in the forms in which their owners have them.

Each averages the colors of blocks of pixels, so that it reconstructs real pictures roughly, and a
range or an order of colors that is wrong shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BLOCK: Final = 4
CHANNELS: Final = 4
_TO_LATENT: Final = np.array([[2, 0, 0], [0, 2, 0], [0, 0, 2], [1, -1, 0]], np.float32)
_TO_COLOR: Final = np.linalg.pinv(_TO_LATENT).astype(np.float32)
_TO_LOG_VAR: Final = np.repeat(np.array([9, 9, -9, -9], np.float32)[:, None], 3, axis=1)

Values = Mapping[str, tuple[int, Sequence[int | str]]]


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Values,
    outputs: Values,
    constants: Mapping[str, Any],
    opset: int = 18,
) -> Path:
    """A graph in a file. inputs, outputs: name -> type and shape"""

    def infos(values: Values) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(n, t, shape) for n, (t, shape) in values.items()]

    weights = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "main", infos(inputs), infos(outputs), weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def kl_pair(
    folder: Path,
    *,
    opset: int = 18,
    batch: int | str = "batch_size",
    draws: bool = False,
    half: bool = False,
    names: Sequence[str] = ("latent_parameters",),
) -> tuple[Path, Path]:
    """As optimum writes diffusers' AutoencoderKL: NCHW floats from -1 to 1; mean and log-variance
    in one tensor.

    draws: the encoder gives a draw, as older scripts export it
    half: in half precision
    names: of the encoder's outputs; two are mean and log-variance apart
    """
    sides = ["sample_height", "sample_width"]
    moments = np.concatenate([_TO_LATENT, _TO_LOG_VAR])[:, :, None, None]
    float_, dtype = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    nodes = [
        helper.make_node(
            "AveragePool", ["sample"], ["x"], kernel_shape=[BLOCK] * 2, strides=[BLOCK] * 2
        ),
        helper.make_node("Conv", ["x", "weight"], ["moments"]),
    ]
    if draws:
        # mean + noise, from the one tensor
        nodes += [
            helper.make_node("Slice", ["moments", "0", "4", "1"], ["mean"]),
            helper.make_node("RandomNormalLike", ["mean"], ["noise"]),
            helper.make_node("Add", ["mean", "noise"], ["latent_sample"]),
        ]
        names = ("latent_sample",)
    elif len(names) == 2:
        nodes += [
            helper.make_node("Slice", ["moments", "0", "4", "1"], [names[0]]),
            helper.make_node("Slice", ["moments", "4", "8", "1"], [names[1]]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["moments"], list(names)))
    channels = 2 * CHANNELS if len(names) == 1 and not draws else CHANNELS
    encoder = save(
        folder / "vae_encoder" / "model.onnx",
        nodes,
        {"sample": (float_, [batch, 3, *sides])},
        {name: (float_, [batch, channels, "lh", "lw"]) for name in names},
        {"weight": moments.astype(dtype), "0": np.array([0]), "1": np.array([1])}
        | {"4": np.array([4]), "8": np.array([8])},
        opset,
    )
    decoder = save(
        folder / "vae_decoder" / "model.onnx",
        [
            helper.make_node("Conv", ["latent_sample", "weight"], ["z"]),
            helper.make_node("Resize", ["z", "roi", "enlarge"], ["sample"], mode="nearest"),
        ],
        {"latent_sample": (float_, ["batch_size", CHANNELS, "latent_height", "latent_width"])},
        {"sample": (float_, ["batch_size", 3, *sides])},
        {
            "weight": _TO_COLOR[:, :, None, None].astype(dtype),
            "roi": np.zeros(0, np.float32),
            "enlarge": np.array([1, 1, BLOCK, BLOCK], np.float32),
        },
        opset,
    )
    return encoder, decoder


def byte_pair(folder: Path, side: int | None = 16) -> tuple[Path, Path]:
    """As a TensorFlow user would have it: NHWC bytes of one size; a point, also NHWC.

    side: None: of any size
    """
    byte, float_ = TensorProto.UINT8, TensorProto.FLOAT
    sides = ["height", "width"] if side is None else [side] * 2
    small = ["a", "b"] if side is None else [side // BLOCK] * 2
    encoder = save(
        folder / "encoder.onnx",
        [
            helper.make_node("Cast", ["image"], ["floats"], to=float_),
            helper.make_node("Transpose", ["floats"], ["first"], perm=[0, 3, 1, 2]),
            helper.make_node(
                "AveragePool", ["first"], ["pooled"], kernel_shape=[BLOCK] * 2, strides=[BLOCK] * 2
            ),
            helper.make_node("Conv", ["pooled", "weight"], ["latent"]),
            helper.make_node("Transpose", ["latent"], ["code"], perm=[0, 2, 3, 1]),
        ],
        {"image": (byte, ["n", *sides, 3])},
        {"code": (float_, ["n", *small, CHANNELS])},
        {"weight": _TO_LATENT[:, :, None, None]},
    )
    decoder = save(
        folder / "decoder.onnx",
        [
            helper.make_node("Transpose", ["code"], ["first"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["first", "weight"], ["pooled"]),
            helper.make_node("Resize", ["pooled", "roi", "enlarge"], ["large"], mode="nearest"),
            helper.make_node("Clip", ["large", "low", "high"], ["clipped"]),
            helper.make_node("Round", ["clipped"], ["rounded"]),
            helper.make_node("Transpose", ["rounded"], ["last"], perm=[0, 2, 3, 1]),
            helper.make_node("Cast", ["last"], ["image"], to=byte),
        ],
        {"code": (float_, ["n", *small, CHANNELS])},
        {"image": (byte, ["n", *sides, 3])},
        {
            "weight": _TO_COLOR[:, :, None, None],
            "roi": np.zeros(0, np.float32),
            "enlarge": np.array([1, 1, BLOCK, BLOCK], np.float32),
            "low": np.float32(0),
            "high": np.float32(255),
        },
    )
    return encoder, decoder


def vector_pair(folder: Path, length: int = 6) -> tuple[Path, Path]:
    """Vectors -> mean, log_var of 3 numbers, apart -> vectors."""
    float_ = TensorProto.FLOAT
    weight = np.random.default_rng(0).standard_normal((length, 3)).astype(np.float32)
    encoder = save(
        folder / "encoder.onnx",
        [
            helper.make_node("MatMul", ["x", "weight"], ["mu"]),
            helper.make_node("Tanh", ["mu"], ["logvar"]),
        ],
        {"x": (float_, ["n", length])},
        {"mu": (float_, ["n", 3]), "logvar": (float_, ["n", 3])},
        {"weight": weight},
    )
    decoder = save(
        folder / "decoder.onnx",
        [helper.make_node("MatMul", ["z", "weight"], ["x"])],
        {"z": (float_, ["n", 3])},
        {"x": (float_, ["n", length])},
        {"weight": np.linalg.pinv(weight).astype(np.float32)},
    )
    return encoder, decoder
