"""Admits a model that was trained elsewhere, or says why it must not be published as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from latentd.training.adopt.candidate import Candidate
from latentd.training.adopt.checks import (
    agreement,
    batches,
    branches,
    colors,
    costs,
    densities,
    extremes,
    nodes,
    repeats,
    sizes,
)
from latentd.training.adopt.checks.finding import Finding
from latentd.training.adopt.checks.subject import Subject

CHECKS: Final[Mapping[str, Callable[[Subject], Finding]]] = {
    "random nodes": nodes.check,
    "sizes": sizes.check,
    "determinism": repeats.check,
    "batches": batches.check,
    "agreement": agreement.check,
    "extremes": extremes.check,
    "branches": branches.check,
    "colors": colors.check,
    "likelihood": densities.check,
    "costs": costs.check,
}
"""In this order: each relies on those before it, and the first failure names the cause."""


def admit(candidate: Candidate, report: Callable[[str], None]) -> dict[str, Any]:
    """Run every check; returns their figures by the check's name, for the manifest.

    report: gets a line for each check that passed. Raises AdmissionError at the first one that
    fails; its message says what was found, what was expected and what to do.
    """
    subject, figures = Subject(candidate), dict[str, Any]()
    for name, check in CHECKS.items():
        finding = check(subject)
        report(f"{name}: {finding.line}")
        figures[name.replace(" ", "_")] = dict(finding.figures)
    return figures
