"""Checks that a graph gives the same bytes for the same rows."""

from __future__ import annotations

from latentd.training.adopt.checks.finding import Finding
from latentd.training.adopt.checks.graphs import Pair
from latentd.training.adopt.checks.subject import Subject
from latentd.training.errors import AdmissionError

_ROWS = 2
_RUNS = 3  # the last one in sessions of its own


def check(subject: Subject) -> Finding:
    """Run both graphs again, also in new sessions, and compare the bytes."""
    x = subject.rows(subject.cheap, _ROWS)
    outputs = subject.encode(x)
    z = outputs["mean"]
    outputs |= subject.decode(z)
    for pair in (subject.graphs, Pair(subject.candidate)):
        for name, again in (pair.encode(x) | pair.decode(z)).items():
            if again.tobytes() != outputs[name].tobytes():
                raise AdmissionError(
                    f"The same rows gave another {name} the second time; expected the same bytes. "
                    "Remove what is random or keeps a state from the model, and export it again."
                )
    return Finding(f"{', '.join(outputs)} have the same bytes in {_RUNS} runs", {"runs": _RUNS})
