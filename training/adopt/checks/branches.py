"""Compares the graphs with the owner's own implementation at the extremes.

A graph keeps one branch of code that asks for values. Usual rows do not show the other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from latentd.training.adopt.checks import differences, extreme_rows
from latentd.training.adopt.checks.finding import Finding
from latentd.training.adopt.checks.subject import Subject
from latentd.training.errors import AdmissionError
from latentd.training.tolerances import TOLERANCES

_MAX_SECONDS: Final = 20.0  # of all CPUs together
_LEAST: Final = 1e-2
"""Of the largest value: far more than rounding at the extremes too, less than another branch."""


def check(subject: Subject) -> Finding:
    """One row of each kind, while the reference does not take too long."""
    began, compared, line = time.process_time(), list[str](), ""
    for what, name, found, expected in _outputs(subject):
        _require_near(what, name, found, expected, subject.manifest.precision)
        compared.append(f"{name} for {what}")
        if time.process_time() - began > _MAX_SECONDS:
            line = f"; not after {compared[-1]}, as the reference takes too long"
            break
    line = f"the reference gives the same at the extremes, in {len(compared)} comparisons{line}"
    return Finding(line, {"compared": compared})


def _outputs(subject: Subject) -> Iterator[tuple[str, str, Any, Any]]:
    """What the rows are, the output's name, the graph's values and the reference's."""
    reference, means = subject.candidate.reference, []
    for what, x in extreme_rows.inputs(subject, subject.cheap, 1):
        found = subject.encode(x)
        mean, log_var = reference.encode(x)
        means.append(mean)
        yield what, "mean", found["mean"], mean
        if log_var is not None:
            yield what, "log_var", found["log_var"], log_var
    for what, z in extreme_rows.latents(subject, subject.cheap, 1, np.concatenate(means)):
        yield what, "x", subject.decode(z)["x"], reference.decode(z)


def _require_near(what: str, name: str, found: Any, expected: Any, precision: str) -> None:
    difference = differences.between(found, expected, TOLERANCES[precision])
    scale = 255.0 if expected.dtype == np.uint8 else max(1.0, float(np.abs(expected).max()))
    if difference.allowed or difference.largest <= _LEAST * scale:
        return
    graph = "decoder.onnx" if name == "x" else "encoder.onnx"
    raise AdmissionError(
        f"{graph} gives for {what} another {name} than the reference, that differs by up to "
        f"{difference.largest:.2g}, though not for usual rows; does the model's code branch on "
        "values? A graph keeps the branch of the rows that it was exported with. Use torch.where "
        "instead of if, and export again."
    )
