"""Checks that outputs are finite at the extremes: half precision overflows there first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from latentd.training.adopt.checks import extreme_rows, unrounded
from latentd.training.adopt.checks.finding import Finding
from latentd.training.adopt.checks.graphs import Graph, GraphFailed
from latentd.training.adopt.checks.half import HalfValues
from latentd.training.adopt.checks.subject import Subject
from latentd.training.array import Array
from latentd.training.errors import AdmissionError

Run = Callable[[Array], dict[str, Array]]

_ROWS: Final = 4
_LESS_PRECISE: Final = "Adopt the model in float32"
_PRECISE: Final = (
    "Find the operator that overflows, or give the card the clip of log_var and the scale that the "
    "model was trained with"
)


def check(subject: Subject) -> Finding:
    """Black, white and noise through the encoder, latents of 4 sigma through the decoder."""
    largest = {"mean": 0.0, "x": 0.0}
    means = []
    for what, x in extreme_rows.inputs(subject, subject.cheap, _ROWS):
        outputs = subject.encode(x)
        for name, values in outputs.items():
            _require_finite("encoder.onnx", name, values, what, subject.manifest.precision)
        largest["mean"] = max(largest["mean"], float(np.abs(outputs["mean"]).max()))
        means.append(outputs["mean"])
    of_inputs = np.concatenate(means)
    if subject.manifest.precision == "float16":
        _check_half(subject, of_inputs)
    # Bytes are always finite, so infinity would hide behind the conversion.
    try:
        decode: Run = Graph(unrounded.decoder(subject.candidate.decoder)).run
    except GraphFailed:
        decode = subject.decode
    for what, z in extreme_rows.latents(subject, subject.cheap, _ROWS, of_inputs):
        outputs = decode(z)
        for name, values in outputs.items():
            _require_finite("decoder.onnx", name, values, what, subject.manifest.precision)
        largest["x"] = max(largest["x"], float(np.abs(outputs["x"]).max()))
    line = (
        f"finite in {subject.manifest.precision}; largest values: mean {largest['mean']:.3g}, x "
        f"{largest['x']:.3g} before any rounding"
    )
    return Finding(line, {"sigmas": extreme_rows.SIGMAS, "largest": largest})


def _check_half(subject: Subject, means: Array) -> None:
    """Look inside the graphs, at the smallest size, as all values are kept."""
    smallest = subject.sizes[0]
    encoder = HalfValues(subject.candidate.encoder)
    for what, x in extreme_rows.inputs(subject, smallest, _ROWS):
        _require_no_overflow("encoder.onnx", encoder, x, what)
    decoder = HalfValues(subject.candidate.decoder)
    for what, z in extreme_rows.latents(subject, smallest, _ROWS, means):
        _require_no_overflow("decoder.onnx", decoder, z, what)


def _require_finite(graph: str, name: str, values: Array, what: str, precision: str) -> None:
    if np.isfinite(values).all():
        return
    advice = _LESS_PRECISE if precision == "float16" else _PRECISE
    raise AdmissionError(
        f"{graph} gives NaN or infinity in {name} for {what}, in {precision}; expected finite "
        f"numbers. {advice}."
    )


def _require_no_overflow(graph: str, values: HalfValues, rows: Array, what: str) -> None:
    if (node := values.overflow(rows)) is not None:
        raise AdmissionError(
            f"{graph} overflows float16 at its node {node.name or node.output[0]}, a "
            f"{node.op_type}, for {what}; expected numbers up to 65504. {_LESS_PRECISE}."
        )
