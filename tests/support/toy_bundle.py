"""The toy bundle, whose answers prove whose rows they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from latentd import bundle
from latentd.bundle import DataSpec, LatentFormat, Manifest, RowFormat, Threshold
from latentd.shapes import Shape
from tests.support.likelihoods import (
    LIKELIHOODS,
    likelihood_graph,
    likelihood_of,
    log_likelihood,
)
from tests.support.onnx_graphs import npz, serialized

SHAPE = (4, 4)
LATENT_SIZE = 16
X = DataSpec("image", SHAPE, "uint8", (0.0, 255.0))


def toy_files(levels: int = 255) -> dict[str, bytes]:
    """An encoder and a decoder that are each other's inverse: Reconstruct gives x back exactly.

    mean = x / levels, log_var = -2; x = round(levels z), logits = z. Bundles of different levels
    give different answers, so an answer also proves which graphs computed it.
    """
    constants = {
        "levels": np.float32(levels),
        "zero": np.float32(0),
        "one": np.float32(1),
        "minus_two": np.float32(-2),
        "flat": np.array([-1, LATENT_SIZE], np.int64),
        "image": np.array([-1, *SHAPE], np.int64),
        "parameters": np.array([-1, 1, *SHAPE], np.int64),
    }
    encoder = serialized(
        [
            helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["floats", "levels"], ["unit"]),
            helper.make_node("Reshape", ["unit", "flat"], ["mean"]),
            helper.make_node("Mul", ["mean", "zero"], ["zeros"]),
            helper.make_node("Add", ["zeros", "minus_two"], ["log_var"]),
        ],
        {"x": ("uint8", SHAPE)},
        {"mean": ("float32", (LATENT_SIZE,)), "log_var": ("float32", (LATENT_SIZE,))},
        constants,
    )
    decoder = serialized(
        [
            helper.make_node("Reshape", ["z", "parameters"], ["params"]),
            helper.make_node("Clip", ["z", "zero", "one"], ["unit"]),
            helper.make_node("Mul", ["unit", "levels"], ["scaled"]),
            helper.make_node("Round", ["scaled"], ["rounded"]),
            helper.make_node("Cast", ["rounded"], ["bytes"], to=TensorProto.UINT8),
            helper.make_node("Reshape", ["bytes", "image"], ["x"]),
        ],
        {"z": ("float32", (LATENT_SIZE,))},
        {"x": ("uint8", SHAPE), "params": ("float32", (1, *SHAPE))},
        constants,
    )
    x = np.arange(2 * LATENT_SIZE, dtype=np.uint8).reshape(2, *SHAPE)
    mean = (x.astype(np.float32) / levels).reshape(2, LATENT_SIZE)
    likelihood, params = likelihood_graph("bernoulli", X), mean.reshape(2, 1, *SHAPE)
    golden = npz(
        x=x,
        mean=mean,
        log_var=np.full_like(mean, -2),
        z=mean,
        decoded_x=x,
        params=params,
        log_likelihood=log_likelihood(likelihood, x, params),
    )
    return {
        bundle.ENCODER: encoder,
        bundle.DECODER: decoder,
        bundle.LIKELIHOOD: likelihood,
        bundle.GOLDEN: golden,
    }


def toy_manifest(model: str = "toy", posterior: str = "gaussian") -> Manifest:
    return Manifest(
        model=model,
        x=RowFormat.of(X),
        z=LatentFormat(Shape.parse([LATENT_SIZE])),
        likelihood=LIKELIHOODS["bernoulli"],
        posterior=posterior,
        prior="standard-normal" if posterior == "gaussian" else None,
        opset=18,
        preprocessing="x / 255 inside the graph",
        parity={},
    )


class PublishToy:
    """Publish the toy bundle, whole or with some files replaced.

    contributions: its likelihood gives them; threshold: as the manifest has it
    """

    def __call__(
        self,
        root: Path,
        model: str = "toy",
        posterior: str = "gaussian",
        levels: int = 255,
        contributions: bool = False,
        threshold: Threshold | None = None,
        **replaced: bytes,
    ) -> Path:
        files = {name.replace("_", "."): data for name, data in replaced.items()}
        files = toy_files(levels) | files
        manifest = dataclasses.replace(toy_manifest(model, posterior), threshold=threshold)
        if contributions:
            files[bundle.LIKELIHOOD] = likelihood_graph("bernoulli", X, contributions=True)
            likelihood = likelihood_of("bernoulli", X)
            manifest = dataclasses.replace(manifest, likelihood=likelihood)
        return bundle.publish(root, manifest, files)
