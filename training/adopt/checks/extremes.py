"""Checks that outputs are finite at the extremes: half precision overflows there first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from latentd.shapes import Sizes
from latentd.training.adopt.checks import unrounded
from latentd.training.adopt.checks.finding import Finding
from latentd.training.adopt.checks.graphs import Graph, GraphFailed
from latentd.training.adopt.checks.half import HalfValues
from latentd.training.adopt.checks.subject import Subject
from latentd.training.errors import AdmissionError

Array = npt.NDArray[Any]
Run = Callable[[Array], dict[str, Array]]

_SIGMAS: Final = 4.0
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
    for what, x in _inputs(subject, subject.cheap):
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
    for what, z in _latents(subject, subject.cheap, of_inputs):
        outputs = decode(z)
        for name, values in outputs.items():
            _require_finite("decoder.onnx", name, values, what, subject.manifest.precision)
        largest["x"] = max(largest["x"], float(np.abs(outputs["x"]).max()))
    line = (
        f"finite in {subject.manifest.precision}; largest values: mean {largest['mean']:.3g}, x "
        f"{largest['x']:.3g} before any rounding"
    )
    return Finding(line, {"sigmas": _SIGMAS, "largest": largest})


def _check_half(subject: Subject, means: Array) -> None:
    """Look inside the graphs, at the smallest size, as all values are kept."""
    smallest = subject.sizes[0]
    encoder = HalfValues(subject.candidate.encoder)
    for what, x in _inputs(subject, smallest):
        _require_no_overflow("encoder.onnx", encoder, x, what)
    decoder = HalfValues(subject.candidate.decoder)
    for what, z in _latents(subject, smallest, means):
        _require_no_overflow("decoder.onnx", decoder, z, what)


def _inputs(subject: Subject, sizes: Sizes) -> Iterator[tuple[str, Array]]:
    x = subject.manifest.at(sizes).x
    if math.isfinite(x.range[1] - x.range[0]):
        for name, end in zip(("black", "white"), x.range, strict=True):
            name = name if x.kind == "image" else f"x of {end:g}"
            yield name, np.full((1, *x.shape), end, x.dtype)
    yield "noise", subject.noise(sizes, _ROWS)
    yield "real rows", subject.rows(sizes, _ROWS)


def _latents(subject: Subject, sizes: Sizes, means: Array) -> Iterator[tuple[str, Array]]:
    """4 sigma of the prior; without one, of each channel of the encoded rows."""
    center, sigma = np.float32(0), np.float32(1)
    if subject.manifest.prior is None:
        axes = (0, *range(2, means.ndim))
        center, sigma = means.mean(axes, keepdims=True), means.std(axes, keepdims=True)
    shape = subject.manifest.at(sizes).z
    signs = np.sign(np.random.default_rng(0).standard_normal((_ROWS, *shape)))
    for name, factors in (("+4", np.ones(shape)[None]), ("-4", -np.ones(shape)[None])):
        yield f"z of {name} sigma", (center + _SIGMAS * sigma * factors).astype(np.float32)
    mixed = (center + _SIGMAS * sigma * signs).astype(np.float32)
    yield "z of +4 and -4 sigma by chance", mixed


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
