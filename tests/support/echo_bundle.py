"""A bundle whose graphs return their input, and NaN where its square overflows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import helper

from latentd import bundle
from latentd.bundle import DataSpec, LatentFormat, Manifest, RowFormat
from latentd.shapes import Shape
from tests.support.likelihoods import LIKELIHOODS, likelihood_graph, log_likelihood
from tests.support.onnx_graphs import npz, serialized

SIZE = 4  # of a row, and of its latent
HUGE = 3e38  # finite, but its square is not


def publish_echo(root: Path, likelihood: str = "gaussian", model: str = "echo") -> Path:
    """Rows of 4 numbers from 0 to 1: mean = x and log_var = -2; x = z, params z and -1."""
    encoder = _graph(
        "x", [("Identity", ["x_"], "mean"), ("Add", ["zeros", "minus_two"], "log_var")]
    )
    spread = [("Add", ["zeros", "minus_one"], "log_std"), ("Concat", ["x_", "log_std"], "both")]
    parameters = [*spread, ("Reshape", ["both", "two_of_size"], "params")]
    if likelihood == "bernoulli":
        parameters = [("Reshape", ["x_", "one_of_size"], "params")]
    decoder = _graph("z", [("Identity", ["x_"], "x"), *parameters])
    rows = np.random.default_rng(0).random((32, SIZE), np.float32)
    params = np.stack([rows, np.full_like(rows, -1)], axis=1)
    params = params[:, : len(LIKELIHOODS[likelihood].parameters)]
    x = DataSpec("vector", (SIZE,), "float32", (0.0, 1.0))
    graph = likelihood_graph(likelihood, x)
    golden = npz(
        x=rows,
        mean=rows,
        log_var=np.full_like(rows, -2),
        z=rows,
        decoded_x=rows,
        params=params,
        log_likelihood=log_likelihood(graph, rows, params),
    )
    manifest = Manifest(
        model=model,
        x=RowFormat.of(x),
        z=LatentFormat(Shape.parse([SIZE])),
        likelihood=LIKELIHOODS[likelihood],
        opset=18,
        preprocessing="none",
        parity={},
    )
    files = {
        bundle.ENCODER: encoder,
        bundle.DECODER: decoder,
        bundle.LIKELIHOOD: graph,
        bundle.GOLDEN: golden,
    }
    return bundle.publish(root, manifest, files)


def _graph(input_: str, nodes: list[tuple[str, list[str], str]]) -> bytes:
    """A graph whose nodes may use x_, its input, and zeros. Both are NaN if x² overflows."""
    constants = {
        "zero": np.float32(0),
        "minus_one": np.float32(-1),
        "minus_two": np.float32(-2),
        "one_of_size": np.array([-1, 1, SIZE]),
        "two_of_size": np.array([-1, 2, SIZE]),
    }
    nodes = [
        ("Mul", [input_, input_], "square"),
        ("Mul", ["square", "zero"], "zeros"),
        ("Add", [input_, "zeros"], "x_"),
        *nodes,
    ]
    outputs = [name for *_, name in nodes if name in ("mean", "log_var", "x", "params")]
    parameters = 2 if any("both" in names for _, names, _ in nodes) else 1
    shapes = {"params": (parameters, SIZE)}
    return serialized(
        [
            helper.make_node(kind, names, [name], **({"axis": 1} if kind == "Concat" else {}))
            for kind, names, name in nodes
        ],
        {input_: ("float32", (SIZE,))},
        {name: ("float32", shapes.get(name, (SIZE,))) for name in outputs},
        constants,
    )
