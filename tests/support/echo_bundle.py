"""A bundle whose graphs give back what they take, and NaN where its square overflows."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

from latentd import bundle
from latentd.bundle import DataSpec, Manifest

SIZE = 4  # of a row, and of its latent
HUGE = 3e38  # finite, and its square is not


def publish_echo(root: Path, likelihood: str = "gaussian", model: str = "echo") -> Path:
    """Rows of 4 numbers from 0 to 1: mean = x and log_var = -2; x = z, params z and -1."""
    encoder = _graph(
        "x", [("Identity", ["x_"], "mean"), ("Add", ["nothing", "minus_two"], "log_var")]
    )
    spread = [("Add", ["nothing", "minus_one"], "log_std"), ("Concat", ["x_", "log_std"], "both")]
    parameters = [*spread, ("Reshape", ["both", "two_of_size"], "params")]
    if likelihood == "bernoulli":
        parameters = [("Reshape", ["x_", "one_of_size"], "params")]
    decoder = _graph("z", [("Identity", ["x_"], "x"), *parameters])
    rows = np.random.default_rng(0).random((32, SIZE), np.float32)
    params = np.stack([rows, np.full_like(rows, -1)], axis=1)
    golden = io.BytesIO()
    np.savez(
        golden,
        x=rows,
        mean=rows,
        log_var=np.full_like(rows, -2),
        z=rows,
        decoded_x=rows,
        params=params[:, : bundle.LIKELIHOODS[likelihood]],
    )
    manifest = Manifest(
        model=model,
        x=DataSpec("vector", (SIZE,), "float32", (0.0, 1.0)),
        latent_size=SIZE,
        likelihood=likelihood,
        family="vae",
        opset=18,
        preprocessing="none",
        parity={},
    )
    files = {
        bundle.ENCODER: encoder,
        bundle.DECODER: decoder,
        bundle.GOLDEN: golden.getvalue(),
    }
    return bundle.publish(root, manifest, files)


def _graph(taken: str, nodes: list[tuple[str, list[str], str]]) -> bytes:
    """A graph whose nodes may use x_, which is what it takes, and nothing, which is 0: both are NaN
    where the square of what it takes overflows."""
    constants = {
        "zero": np.float32(0),
        "minus_one": np.float32(-1),
        "minus_two": np.float32(-2),
        "one_of_size": np.array([-1, 1, SIZE]),
        "two_of_size": np.array([-1, 2, SIZE]),
    }
    nodes = [
        ("Mul", [taken, taken], "square"),
        ("Mul", ["square", "zero"], "nothing"),
        ("Add", [taken, "nothing"], "x_"),
        *nodes,
    ]
    used = {name for _, names, _ in nodes for name in names}
    given = [name for *_, name in nodes if name in ("mean", "log_var", "x", "params")]
    parameters = 2 if "both" in used else 1
    shapes = {"params": (parameters, SIZE)}

    def value(name: str) -> onnx.ValueInfoProto:
        shape = ["batch", *shapes.get(name, (SIZE,))]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        [
            helper.make_node(kind, names, [name], **({"axis": 1} if kind == "Concat" else {}))
            for kind, names, name in nodes
        ],
        "echo",
        [value(taken)],
        [value(name) for name in given],
        [from_array(np.asarray(v), k) for k, v in constants.items() if k in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()
