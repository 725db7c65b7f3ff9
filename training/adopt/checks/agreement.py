"""Compares the graphs with the owner's own implementation."""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np

from latentd.shapes import Sizes
from latentd.training.adopt.checks import differences
from latentd.training.adopt.checks.finding import Finding
from latentd.training.adopt.checks.subject import Subject, format_sizes
from latentd.training.errors import AdmissionError
from latentd.training.tolerances import TOLERANCES, Tolerance

_ROWS: Final = 2
_MAX_SECONDS: Final = 20.0  # of the reference at one size, of all CPUs together
_SMALL: Final = 1 << 14  # elements of a row: fewer take as long
_DEEP: Final = 10.0
"""Times the tolerance of our own nets: these may be far deeper, and another library sums up."""

_ADVICE: Final = (
    "Check that both have the same weights, and the card's range, scale, shift and order of "
    "outputs."
)


def check(subject: Subject) -> Finding:
    """Compare at every size, while the reference does not take too long."""
    tolerance = _tolerance(subject.manifest.precision)
    largest, compared, seconds, elements = dict[str, float](), list[Sizes](), 0.0, 1
    for sizes in subject.sizes:
        more = subject.manifest.at(sizes).x.size
        if compared and seconds * more / elements > _MAX_SECONDS:
            break
        began = time.process_time()
        for name, difference in _compare(subject, sizes, tolerance).items():
            largest[name] = max(largest.get(name, 0.0), difference)
        seconds, elements = time.process_time() - began, max(more, _SMALL)
        compared.append(sizes)
    owners = _compare_expected(subject, tolerance)
    line = f"largest differences at {len(compared)} of {len(subject.sizes)} sizes: "
    line += differences.format_largest(largest)
    if len(compared) < len(subject.sizes):
        line += "; the reference takes too long at the others"
    if owners:
        line += f"; from the arrays of --expected: {differences.format_largest(owners)}"
    figures: dict[str, Any] = {"expected": owners} if owners else {}
    figures |= {"sizes": [dict(sizes) for sizes in compared], "rows": _ROWS}
    figures |= {"atol": tolerance.atol, "rtol": tolerance.rtol, "levels": tolerance.levels}
    return Finding(line, figures | {"max_abs_difference": largest})


def _tolerance(precision: str) -> Tolerance:
    own = TOLERANCES[precision]
    if precision != "float32":  # of half precision it is wide enough
        return own
    return own._replace(atol=_DEEP * own.atol, rtol=_DEEP * own.rtol)


def _compare(subject: Subject, sizes: Sizes, tolerance: Tolerance) -> dict[str, float]:
    """The largest difference of each output. Both decoders get the reference's latents."""
    x = subject.rows(sizes, _ROWS)
    reference = subject.candidate.reference
    mean, log_var = reference.encode(x)
    expected: dict[str, Any] = {"mean": mean}
    z = mean
    if log_var is not None:
        expected["log_var"] = log_var
        noise = np.random.default_rng(0).standard_normal(mean.shape)
        z = (mean + np.exp(0.5 * log_var) * noise).astype(np.float32)
    found = subject.encode(x)
    if found.keys() != expected.keys():
        raise AdmissionError(
            f"The reference gives {', '.join(expected)}, and encoder.onnx {', '.join(found)}. "
            "Correct the posterior in the card."
        )
    found |= subject.decode(z)
    expected["x"] = reference.decode(z)
    if subject.manifest.likelihood:
        expected["params"] = reference.params(z)
    largest = {}
    for name, values in expected.items():
        difference = differences.between(found[name], values, tolerance)
        if not difference.allowed:
            raise AdmissionError(_sentence(name, found[name], values, difference.largest, sizes))
        largest[name] = difference.largest
    return largest


def _compare_expected(subject: Subject, tolerance: Tolerance) -> dict[str, float]:
    """The largest difference of each of the owner's own outputs."""
    largest = dict[str, float]()
    for rows in subject.candidate.expected:
        found = subject.encode(rows.arrays["x"]) if "x" in rows.arrays else {}
        if "z" in rows.arrays:
            found = {**found, "decoded_x": subject.decode(rows.arrays["z"])["x"]}
        for name in sorted(set(rows.arrays) - {"x", "z"}):
            difference = differences.between(found[name], rows.arrays[name], tolerance)
            if not difference.allowed:
                raise AdmissionError(
                    f"The bundle gives another {rows.key(name)} than --expected has: it differs by "
                    f"up to {difference.largest:.2g}; expected no more than rounding. " + _ADVICE
                )
            largest[name] = max(largest.get(name, 0.0), difference.largest)
    return largest


def _sentence(name: str, found: Any, expected: Any, largest: float, sizes: Sizes) -> str:
    graph = "decoder.onnx" if name in ("x", "params") else "encoder.onnx"
    how = (
        f"as {found.dtype} {list(found.shape)} instead of {expected.dtype} {list(expected.shape)}"
        if found.shape != expected.shape or found.dtype != expected.dtype
        else f"that differs by up to {largest:.2g}"
    )
    return (
        f"{graph} gives at {format_sizes(sizes)} another {name} than the reference, {how}; "
        f"expected no more than rounding. {_ADVICE}"
    )
