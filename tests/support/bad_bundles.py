"""Bundles' files made by hand: whole, under right checksums, and not to be served."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper


def golden_with(golden_npz: bytes, **arrays: np.ndarray[Any, Any]) -> bytes:
    """Golden vectors with some arrays replaced."""
    with np.load(io.BytesIO(golden_npz)) as file:
        kept = dict(file)
    data = io.BytesIO()
    np.savez(data, **(kept | arrays))
    return data.getvalue()


def of_no_rows(golden_npz: bytes) -> bytes:
    """Golden vectors of zero rows."""
    with np.load(io.BytesIO(golden_npz)) as file:
        return golden_with(golden_npz, **{name: file[name][:0] for name in file})


def bomb(golden_npz: bytes, gibibytes: int) -> bytes:
    """Golden vectors whose x is rows of zeros, so many GiB of them in a thousandth of the size."""
    rows = (gibibytes << 30) // 16
    header = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": (rows, 4, 4)}
    np.lib.format.write_array_header_1_0(header, described)
    data = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(golden_npz)) as old,
        zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for name in old.namelist():
            if name != "x.npy":
                new.writestr(name, old.read(name))
        with new.open("x.npy", "w", force_zip64=True) as member:
            member.write(header.getvalue())
            zeros = bytes(16 << 20)
            for _ in range((gibibytes << 30) // len(zeros)):
                member.write(zeros)
    return data.getvalue()


def said_to_hold(golden_npz: bytes, rows: int) -> bytes:
    """Golden vectors whose x says that it has so many rows and holds none."""
    header = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": (rows, 4, 4)}
    np.lib.format.write_array_header_1_0(header, described)
    data = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(golden_npz)) as old, zipfile.ZipFile(data, "w") as new:
        for name in old.namelist():
            new.writestr(name, header.getvalue() if name == "x.npy" else old.read(name))
    return data.getvalue()


def _before(graph: bytes, takes: str, nodes: list[Any], constants: list[Any]) -> bytes:
    """A graph whose input passes through `nodes`, from `takes` to `<takes>_then`, first."""
    model = onnx.load_from_string(graph)
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            if name == takes:
                node.input[at] = f"{takes}_then"
    kept = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *kept])
    model.graph.initializer.extend(constants)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def negated(graph: bytes, takes: str = "z") -> bytes:
    """A decoder of -z, or another graph that takes the negative of an input."""
    return _before(graph, takes, [helper.make_node("Neg", [takes], [f"{takes}_then"])], [])


def wrong_beyond(decoder: bytes, rows: int) -> bytes:
    """A decoder that negates z in batches of more than so many rows."""
    nodes = [
        helper.make_node("Shape", ["z"], ["rows_here"], start=0, end=1),
        helper.make_node("Greater", ["rows_here", "rows_most"], ["too_many"]),
        helper.make_node("Neg", ["z"], ["z_negated"]),
        helper.make_node("Where", ["too_many", "z_negated", "z"], ["z_then"]),
    ]
    return _before(decoder, "z", nodes, [helper.make_tensor("rows_most", 7, [1], [rows])])


def allocating(decoder: bytes, gibibytes: int) -> bytes:
    """A decoder that needs so many GiB for any batch."""
    numbers = gibibytes << 28
    nodes = [
        helper.make_node(
            "ConstantOfShape",
            ["many"],
            ["ones"],
            value=helper.make_tensor("value", TensorProto.FLOAT, [1], [1.0]),
        ),
        helper.make_node("ReduceMax", ["ones"], ["one_of_many"], keepdims=0),
        helper.make_node("Mul", ["z", "one_of_many"], ["z_then"]),
    ]
    return _before(decoder, "z", nodes, [helper.make_tensor("many", 7, [1], [numbers])])
