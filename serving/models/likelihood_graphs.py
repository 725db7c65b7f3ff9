"""The likelihood's graph of a bundle: its likelihood.onnx, or one of ours for format 1."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from latentd.bundle import LIKELIHOOD, Bundle
from latentd.runtime import likelihood
from latentd.runtime.likelihood import LikelihoodGraph, Params
from latentd.shapes import Shape

_FLAT_ROW: Final = Shape.parse(["size"])


def load(bundle: Bundle) -> LikelihoodGraph | None:
    """The graph, ready to run; None if the model defines no likelihood, or if its rows are texts,
    whose decoder computes it. Raises BundleError."""
    m = bundle.manifest
    if m.likelihood is None or m.x.is_text:
        return None
    parameters = len(m.likelihood.parameters)
    if m.format > 1:
        return likelihood.load(
            bundle.files[LIKELIHOOD],
            m.x.dtype,
            m.x.shape,
            parameters,
            contributions=m.likelihood.contributions,
        )
    graph = resources.files(__package__) / "format_1" / f"{m.likelihood.name}.onnx"
    prepare = functools.partial(_flat, m.x.range)
    return likelihood.load(graph.read_bytes(), "float32", _FLAT_ROW, parameters, prepare)


def to_unit_interval(x: NDArray[Any], x_range: tuple[float, float]) -> NDArray[np.float32]:
    """x scaled from its value range to [0, 1], as the graphs for format 1 take it."""
    low, high = x_range
    span = np.float32(high - low)
    values: NDArray[np.float32]
    if not low:  # one pass, and the same bits
        values = np.divide(x, span, dtype=np.float32)
        return values
    values = np.subtract(x, np.float32(low), dtype=np.float32)
    values /= span
    return values


def _flat(
    x_range: tuple[float, float], x: NDArray[Any], params: Params
) -> tuple[NDArray[np.float32], Params]:
    rows = len(x)
    return to_unit_interval(x, x_range).reshape(rows, -1), params.reshape(*params.shape[:2], -1)
