"""Graphs and golden files of bundles, as bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.numpy_helper import from_array

Values = Mapping[str, tuple[str, tuple[int | str, ...]]]
"""Inputs or outputs: name -> dtype and the shape of a row; a name stands for a free length."""


def serialized(
    nodes: Sequence[onnx.NodeProto], inputs: Values, outputs: Values, constants: Mapping[str, Any]
) -> bytes:
    """A checked graph of any number of rows; of the constants it holds those that its nodes use."""

    def infos(values: Values) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), ["batch", *shape]
            )
            for name, (dtype, shape) in values.items()
        ]

    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "test",
        infos(inputs),
        infos(outputs),
        [from_array(np.asarray(v), name) for name, v in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()
