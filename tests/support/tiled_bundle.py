"""A convolutional bundle for images of any size that sees only a part of them, with tiles.

Every number of z depends on the pixels at most 9 beyond its own 8 x 8; every pixel of x on the
numbers of z at most one beyond its own. So tiles are exact if they overlap by 32 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from latentd import bundle
from latentd.bundle import Tile
from latentd.shapes import Axis
from tests.support.onnx_graphs import npz, serialized
from tests.support.spatial_bundle import BLOCK, CHANNELS, X_SHAPE, Z_SHAPE, spatial_manifest

AXES: Final = {name: Axis(name, BLOCK, min=16, max=1024, default=32) for name in ("h", "w")}
FEATURES: Final = 8
SIZE: Final = 64
EXACT: Final = Tile({"h": SIZE, "w": SIZE}, {"h": 32, "w": 32}, True, max_abs_difference=1e-6)
APPROXIMATE: Final = Tile({"h": SIZE, "w": SIZE}, {"h": 16, "w": 16}, False, decibels=30.0)


def images(rows: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise: every pixel counts."""
    shape = (rows, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoder() -> bytes:
    return serialized(
        [
            helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["floats", "per_level"], ["unit"]),
            helper.make_node("Transpose", ["unit"], ["image"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["image", "in", "bias"], ["seen"], pads=[1] * 4),
            helper.make_node("Relu", ["seen"], ["positive"]),
            helper.make_node(
                "AveragePool", ["positive"], ["pooled"], kernel_shape=[8] * 2, strides=[8] * 2
            ),
            helper.make_node("Conv", ["pooled", "out"], ["both"], pads=[1] * 4),
            helper.make_node("Split", ["both"], ["mean", "log_var"], axis=1, num_outputs=2),
        ],
        {"x": ("uint8", X_SHAPE)},
        {"mean": ("float32", Z_SHAPE), "log_var": ("float32", Z_SHAPE)},
        {
            "per_level": np.float32(1 / 255),
            "in": _weights(FEATURES, 3, seed=1),
            "bias": np.full(FEATURES, 0.5, np.float32),
            "out": _weights(2 * CHANNELS, FEATURES, seed=2),
        },
    )


def decoder() -> bytes:
    return serialized(
        [
            helper.make_node("Conv", ["z", "in"], ["seen"], pads=[1] * 4),
            helper.make_node("Relu", ["seen"], ["positive"]),
            helper.make_node("Resize", ["positive", "", "enlarge"], ["large"], mode="nearest"),
            helper.make_node("Conv", ["large", "out"], ["image"], pads=[1] * 4),
            helper.make_node("Sigmoid", ["image"], ["unit"]),
            helper.make_node("Transpose", ["unit"], ["pixels"], perm=[0, 2, 3, 1]),
            helper.make_node("Mul", ["pixels", "levels"], ["scaled"]),
            helper.make_node("Round", ["scaled"], ["rounded"]),
            helper.make_node("Cast", ["rounded"], ["x"], to=TensorProto.UINT8),
        ],
        {"z": ("float32", Z_SHAPE)},
        {"x": ("uint8", X_SHAPE)},
        {
            "in": _weights(FEATURES, CHANNELS, seed=3),
            "enlarge": np.array([1, 1, BLOCK, BLOCK], np.float32),
            "out": _weights(3, FEATURES, seed=4),
            "levels": np.float32(255),
        },
    )


def publish_tiled(root: Path, model: str = "tiled", tile: Tile = EXACT, **changed: Any) -> Path:
    """Publish the bundle.

    tile: of both graphs, as the manifest has it
    changed: other fields of the manifest
    """
    fields = {"axes": AXES, "tiles": {"encoder": tile, "decoder": tile}} | changed
    files = {bundle.ENCODER: encoder(), bundle.DECODER: decoder()}
    golden = npz(**_golden(files, "", 32, 32), **_golden(files, "1.", 48, 24))
    return bundle.publish(root, spatial_manifest(model, **fields), files | {bundle.GOLDEN: golden})


def run(graph: bytes, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """All outputs, by name."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: inputs}), strict=True))


def _golden(
    files: Mapping[str, bytes], prefix: str, height: int, width: int
) -> dict[str, np.ndarray]:
    x = images(2, height, width)
    encoded = run(files[bundle.ENCODER], x)
    arrays = {"x": x, **encoded, "z": encoded["mean"]}
    arrays["decoded_x"] = run(files[bundle.DECODER], encoded["mean"])["x"]
    return {prefix + name: array for name, array in arrays.items()}


def _weights(out: int, into: int, seed: int) -> np.ndarray:
    normal = np.random.default_rng(seed).standard_normal((out, into, 3, 3))
    weights: np.ndarray = (normal / np.sqrt(9 * into)).astype(np.float32)
    return weights
