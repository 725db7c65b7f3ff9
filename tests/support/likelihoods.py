"""Likelihoods of bundles made by hand: what the manifest says of them, and their graphs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

from latentd.bundle import DataSpec, Likelihood
from latentd.shapes import Shape

LIKELIHOODS: Final = {
    likelihood.name: likelihood
    for likelihood in (
        Likelihood("bernoulli", ("logit",), binary=True),
        Likelihood("gaussian", ("mean", "log_std"), bounded=False),
        Likelihood("discretized-logistic", ("mean", "log_scale")),
    )
}
_FLAT: Final = Path(__file__).resolve().parents[2] / "serving" / "models" / "format_1"


def likelihood_of(name: str, x: DataSpec) -> Likelihood:
    """One of LIKELIHOODS whose graph gives contributions, one for each element of x."""
    return dataclasses.replace(LIKELIHOODS[name], contributions=Shape.parse(x.shape))


def likelihood_graph(name: str, x: DataSpec, contributions: bool = False) -> bytes:
    """likelihood.onnx of rows of one size: x is scaled to [0, 1] and flattened before one of the
    graphs that serving has for format 1. contributions: also give the terms of the sum."""
    flat = onnx.load_model(_FLAT / f"{name}.onnx").graph
    for node in flat.node:
        for at, input_ in enumerate(node.input):
            if input_ in ("x", "params"):
                node.input[at] = f"flat_{input_}"
    parameters, (low, high) = len(LIKELIHOODS[name].parameters), x.range
    constants = {
        "low": np.float32(low),
        "span": np.float32(high - low),
        "row": np.array([-1, x.size]),
        "parameters_by_row": np.array([-1, parameters, x.size]),
    }
    before = [
        helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["floats", "low"], ["above"]),
        helper.make_node("Div", ["above", "span"], ["unit"]),
        helper.make_node("Reshape", ["unit", "row"], ["flat_x"]),
        helper.make_node("Reshape", ["params", "parameters_by_row"], ["flat_params"]),
    ]
    after, outputs = [], list(flat.output)
    if contributions:
        cast, *_ = (node for node in flat.node if node.output[0] == _summed(flat))
        constants["rows_of_x"] = np.array([-1, *x.shape])
        after = [helper.make_node("Reshape", [cast.input[0], "rows_of_x"], ["contributions"])]
        float32, shape = TensorProto.FLOAT, ["batch", *x.shape]
        outputs.append(helper.make_tensor_value_info("contributions", float32, shape))
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(x.dtype))
    graph = helper.make_graph(
        [*before, *flat.node, *after],
        "likelihood",
        [
            helper.make_tensor_value_info("x", dtype, ["batch", *x.shape]),
            helper.make_tensor_value_info(
                "params", TensorProto.FLOAT, ["batch", parameters, *x.shape]
            ),
        ],
        outputs,
        [*(from_array(array, key) for key, array in constants.items()), *flat.initializer],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _summed(flat: onnx.GraphProto) -> str:
    """The terms of each row's sum, as float64."""
    (terms,) = (node.input[0] for node in flat.node if node.op_type == "ReduceSum")
    return terms


def log_likelihood(graph: bytes, x: np.ndarray, params: np.ndarray) -> np.ndarray:
    """The golden vectors' log_likelihood: of rows of x, repeatedly, and their params."""
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    rows = np.resize(x, (len(params), *x.shape[1:]))
    output: np.ndarray = session.run(["log_likelihood"], {"x": rows, "params": params})[0]
    return output
