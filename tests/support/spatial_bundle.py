"""A small convolutional bundle for images of any size: free axes h and w, a latent 4 x h/8 x w/8.

An image whose blocks of 8 x 8 pixels each have one color is reconstructed exactly. Any other one
gets the mean color of each block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from onnx import TensorProto, helper

from latentd import bundle
from latentd.bundle import LatentFormat, Manifest, RowFormat
from latentd.shapes import Axis, Shape
from tests.support.likelihoods import LIKELIHOODS
from tests.support.onnx_graphs import npz, serialized

BLOCK: Final = 8  # pixels of x, in height and in width, for one position of z
CHANNELS: Final = 4
AXES: Final = {name: Axis(name, BLOCK, min=16, max=256, default=32) for name in ("h", "w")}
X_SHAPE: Final = ("h", "w", 3)
Z_SHAPE: Final = (CHANNELS, "h/8", "w/8")
LOG_VAR: Final = -4.0

_TO_LATENT: Final = np.array([[4, 0, 0], [0, 4, 0], [0, 0, 4], [2, 0, -2]], np.float32)
_TO_COLOR: Final = np.linalg.pinv(_TO_LATENT).astype(np.float32)
_GRAY: Final = 0.5  # has the latent 0


def blocks(rows: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Images whose blocks each have one random color, uint8 (rows, height, width, 3)."""
    shape = (rows, height // BLOCK, width // BLOCK, 3)
    colors = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return _enlarged(colors)


def encoded(x: np.ndarray) -> np.ndarray:
    """The mean of each image's latent, as the encoder computes it up to rounding."""
    rows, height, width, _ = x.shape
    parts = x.reshape(rows, height // BLOCK, BLOCK, width // BLOCK, BLOCK, 3)
    colors = parts.astype(np.float64).mean(axis=(2, 4)) / 255
    z: np.ndarray = np.einsum("kc,bhwc->bkhw", _TO_LATENT, colors - _GRAY).astype(np.float32)
    return z


def logits(z: np.ndarray) -> np.ndarray:
    """The parameter of each element of x, as the decoder computes it up to rounding."""
    colors = np.einsum("ck,bkhw->bhwc", _TO_COLOR, z.astype(np.float64)) + _GRAY
    result: np.ndarray = _enlarged(colors).astype(np.float32)
    return result


def decoded(z: np.ndarray) -> np.ndarray:
    """The images of latents, as the decoder computes them up to rounding."""
    pixels: np.ndarray = np.round(logits(z).clip(0, 1) * 255).astype(np.uint8)
    return pixels


def _enlarged(colors: np.ndarray) -> np.ndarray:
    return colors.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2)


def spatial_manifest(model: str = "spatial", **changed: Any) -> Manifest:
    fields: dict[str, Any] = {
        "x": RowFormat("image", Shape.parse(X_SHAPE), "uint8", (0.0, 255.0)),
        "z": LatentFormat(Shape.parse(Z_SHAPE), scale=(1.0,), shift=(0.0,)),
        "axes": MappingProxyType(AXES),
        "likelihood": None,
        "opset": 18,
        "preprocessing": "x / 255 inside the graph",
        "parity": {},
    }
    return Manifest(model=model, **(fields | changed))


def spatial_files(likelihood: bool = False) -> dict[str, bytes]:
    """likelihood: with params of a bernoulli likelihood, and its graph"""
    files = {
        bundle.ENCODER: _encoder(),
        bundle.DECODER: _decoder(likelihood),
        bundle.GOLDEN: npz(**_golden("", 32, 32, likelihood), **_golden("1.", 48, 24, likelihood)),
    }
    return files | ({bundle.LIKELIHOOD: _density()} if likelihood else {})


def publish_spatial(
    root: Path, model: str = "spatial", likelihood: bool = False, **changed: Any
) -> Path:
    """Publish the bundle.

    changed: other fields of the manifest
    """
    if likelihood:
        terms = Shape.parse(X_SHAPE)
        changed["likelihood"] = dataclasses.replace(LIKELIHOODS["bernoulli"], contributions=terms)
    return bundle.publish(root, spatial_manifest(model, **changed), spatial_files(likelihood))


def _golden(prefix: str, height: int, width: int, likelihood: bool) -> Mapping[str, np.ndarray]:
    x = blocks(2, height, width, seed=height)
    mean = encoded(x)
    arrays = {"x": x, "mean": mean, "log_var": np.full_like(mean, LOG_VAR)}
    arrays |= {"z": mean, "decoded_x": decoded(mean)}
    if likelihood:
        params = logits(mean)[:, None]
        arrays |= {"params": params, "log_likelihood": _log_likelihood(x, params[:, 0])}
    return {prefix + name: array for name, array in arrays.items()}


def _log_likelihood(x: np.ndarray, params: np.ndarray) -> np.ndarray:
    """In nats, of a bernoulli likelihood with these logits."""
    wide = params.astype(np.float64)
    result: np.ndarray = (x / 255 * wide - np.logaddexp(0, wide)).sum(axis=(1, 2, 3))
    return result


def _encoder() -> bytes:
    return serialized(
        [
            helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["floats", "per_level"], ["unit"]),
            helper.make_node("Transpose", ["unit"], ["image"], perm=[0, 3, 1, 2]),
            helper.make_node(
                "AveragePool", ["image"], ["colors"], kernel_shape=[BLOCK] * 2, strides=[BLOCK] * 2
            ),
            helper.make_node("Conv", ["colors", "to_latent", "latent_of_black"], ["mean"]),
            helper.make_node("Mul", ["mean", "zero"], ["zeros"]),
            helper.make_node("Add", ["zeros", "constant_log_var"], ["log_var"]),
        ],
        {"x": ("uint8", X_SHAPE)},
        {"mean": ("float32", Z_SHAPE), "log_var": ("float32", Z_SHAPE)},
        {
            "per_level": np.float32(1 / 255),
            "to_latent": _TO_LATENT[:, :, None, None],
            "latent_of_black": (_TO_LATENT @ np.full(3, -_GRAY)).astype(np.float32),
            "zero": np.float32(0),
            "constant_log_var": np.float32(LOG_VAR),
        },
    )


def _decoder(likelihood: bool) -> bytes:
    nodes = [
        helper.make_node("Conv", ["z", "to_color", "gray"], ["colors"]),
        helper.make_node("Resize", ["colors", "", "enlarge"], ["image"], mode="nearest"),
        helper.make_node("Transpose", ["image"], ["logits"], perm=[0, 2, 3, 1]),
        helper.make_node("Clip", ["logits", "zero", "one"], ["unit"]),
        helper.make_node("Mul", ["unit", "levels"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["x"], to=TensorProto.UINT8),
    ]
    outputs: dict[str, tuple[str, tuple[int | str, ...]]] = {"x": ("uint8", X_SHAPE)}
    if likelihood:
        nodes.append(helper.make_node("Unsqueeze", ["logits", "first"], ["params"]))
        outputs["params"] = ("float32", (1, *X_SHAPE))
    constants = {
        "to_color": _TO_COLOR[:, :, None, None],
        "gray": np.full(3, _GRAY, np.float32),
        "enlarge": np.array([1, 1, BLOCK, BLOCK], np.float32),
        "zero": np.float32(0),
        "one": np.float32(1),
        "levels": np.float32(255),
        "first": np.array([1]),
    }
    return serialized(nodes, {"z": ("float32", Z_SHAPE)}, outputs, constants)


def _density() -> bytes:
    return serialized(
        [
            helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["floats", "per_level"], ["unit"]),
            helper.make_node("Squeeze", ["params", "first"], ["logits"]),
            helper.make_node("Mul", ["unit", "logits"], ["weighted"]),
            helper.make_node("Softplus", ["logits"], ["normalizer"]),
            helper.make_node("Sub", ["weighted", "normalizer"], ["of_elements"]),
            helper.make_node("Neg", ["of_elements"], ["contributions"]),
            helper.make_node("Cast", ["of_elements"], ["wide"], to=TensorProto.DOUBLE),
            helper.make_node("ReduceSum", ["wide", "of_row"], ["log_likelihood"], keepdims=0),
        ],
        {"x": ("uint8", X_SHAPE), "params": ("float32", (1, *X_SHAPE))},
        {"log_likelihood": ("float64", ()), "contributions": ("float32", X_SHAPE)},
        {"per_level": np.float32(1 / 255), "first": np.array([1]), "of_row": np.array([1, 2, 3])},
    )
