"""Checks that a row's result does not depend on the other rows of its batch."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from latentd.shapes import Sizes
from latentd.training.adopt.checks import differences
from latentd.training.adopt.checks.finding import Finding
from latentd.training.adopt.checks.subject import Subject
from latentd.training.errors import AdmissionError
from latentd.training.tolerances import TOLERANCES

_BATCHES: Final = (2, 3, 9)


def check(subject: Subject) -> Finding:
    """Compare each row alone with the same row amid others."""
    x = _rows(subject, subject.cheap, max(_BATCHES))
    largest = _compare(subject.encode, x, "encoder.onnx", subject)
    z = np.concatenate([subject.encode(row[None])["mean"] for row in x])
    largest |= _compare(subject.decode, z, "decoder.onnx", subject)
    line = (
        f"rows alone as in batches of {', '.join(map(str, _BATCHES))}; largest differences: "
        f"{differences.format_largest(largest)}"
    )
    return Finding(line, {"batches": [1, *_BATCHES], "max_abs_difference": largest})


def _rows(subject: Subject, sizes: Sizes, count: int) -> Any:
    """Rows as unlike as can be: pictures, noise, and the range's two ends."""
    rows = subject.rows(sizes, count)
    x = subject.manifest.at(sizes).x
    if np.isfinite(x.range).all():
        rows[-1], rows[1] = x.range
    return rows


def _compare(run: Any, rows: Any, graph: str, subject: Subject) -> dict[str, float]:
    tolerance = TOLERANCES[subject.manifest.precision]
    alone = [run(row[None]) for row in rows]
    largest = dict.fromkeys(alone[0], 0.0)
    for batch in _BATCHES:
        for first in range(0, len(rows) - batch + 1, batch):
            outputs = run(rows[first : first + batch])
            for name, values in outputs.items():
                for index, value in enumerate(values):
                    expected = alone[first + index][name][0]
                    found = differences.between(value, expected, tolerance)
                    if not found.allowed:
                        raise AdmissionError(
                            f"{graph} mixes the rows of a batch: {name} of row {index} in a batch "
                            f"of {batch} differs from that of the same row alone by "
                            f"{found.largest:.2g}; expected no more than rounding. Remove what "
                            "computes over the batch axis, such as statistics of a batch, and "
                            "export it again."
                        )
                    largest[name] = max(largest[name], found.largest)
    return largest
