"""Runs the graphs at several sizes: many a graph only works at the size of its export."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np

from latentd.shapes import Axis, Sizes
from latentd.training import machine
from latentd.training.adopt.checks.finding import Finding
from latentd.training.adopt.checks.graphs import GraphFailed
from latentd.training.adopt.checks.memory import Peak
from latentd.training.adopt.checks.subject import Subject, format_list, format_short, format_sizes
from latentd.training.array import Array
from latentd.training.errors import AdmissionError

_MAX_ELEMENTS: Final = 1 << 20  # in a row of the usual sizes
_MAX_SECONDS: Final = 60.0  # of one row of the largest size, of all CPUs together
_FEWEST: Final = 3
_UNEVEN: Final = (1.5, 2.5)  # of the default length, along the first axis, the second, and so on


def check(subject: Subject) -> Finding:
    """Run one row at the smallest size, the default, uneven and odd ones and the largest, or the
    largest that time and memory allow. Keeps the sizes in the subject."""
    if not subject.manifest.axes:
        _require(subject, subject.default)
        return Finding("one, as no axis is free", {"run": [dict(subject.default)]})
    usual = _usual(subject)
    for sizes in usual:
        cost = _cost(subject, sizes)
    reached, too_much = usual[-1], ""
    for sizes in _growing(subject):
        growth = _elements(subject, sizes) / _elements(subject, reached)
        if growth > 1:
            if too_much := cost.too_much(growth):
                break
            cost, reached = _cost(subject, sizes), sizes
    subject.sizes = _ascending(subject, [*usual, reached])
    line = f"{len(subject.sizes)} run: {', '.join(map(format_short, subject.sizes))}"
    figures = {"run": [dict(sizes) for sizes in subject.sizes]}
    if too_much:
        largest = {name: axis.max for name, axis in subject.manifest.axes.items()}
        line += (
            f"; not run: what is larger, up to {format_short(largest)}, as {format_short(sizes)} "
            f"might take {too_much}"
        )
        figures["not_run"] = [largest]
    return Finding(line, figures)


class _Cost(NamedTuple):
    """Of one row."""

    seconds: float  # of all CPUs together: it is the same on a busy machine
    nbytes: int

    def too_much(self, growth: float) -> str:
        """What a row with so many times the elements may take, if that is too much; "": it is not.
        Attention grows with the square."""
        seconds, nbytes = self.seconds * growth**2, int(self.nbytes * growth**2)
        if seconds > _MAX_SECONDS:
            return f"{seconds:.0f} s"
        return machine.format_bytes(nbytes) if nbytes > machine.available_memory() else ""


def _usual(subject: Subject) -> list[Sizes]:
    axes = subject.manifest.axes
    found: list[Sizes] = [
        subject.default,
        {name: axis.min for name, axis in axes.items()},
        {name: _odd(axis) for name, axis in axes.items()},
    ]
    for factors in (_UNEVEN, _UNEVEN[::-1]):
        found.append(
            {
                name: axis.nearest(int(axis.default * factors[number % 2]))
                for number, (name, axis) in enumerate(axes.items())
            }
        )
    found = _cheap(subject, found)
    if len(found) < _FEWEST:  # the default is the largest, the smallest, or costly
        found += [subject.default | {name: axis.min} for name, axis in axes.items()]
        found += [subject.default | {name: axis.max} for name, axis in axes.items()]
    return _cheap(subject, found)


def _odd(axis: Axis) -> int:
    """An odd number of units above the smallest length, which windows and halvings do not divide;
    the smallest if there is none."""
    units = axis.min // axis.multiple_of + 1
    length = (units + 1 - units % 2) * axis.multiple_of
    return length if length <= axis.max else axis.min


def _cheap(subject: Subject, sizes: list[Sizes]) -> list[Sizes]:
    """Those that are not too large, and the default in any case."""
    least = max(_MAX_ELEMENTS, _elements(subject, subject.default))
    return _ascending(subject, [one for one in sizes if _elements(subject, one) <= least])


def _growing(subject: Subject) -> Iterator[Sizes]:
    """The default size, doubled along every axis again and again."""
    axes, factor = subject.manifest.axes, 2
    previous = subject.default
    while True:
        sizes = {name: axis.nearest(axis.default * factor) for name, axis in axes.items()}
        if sizes == previous:
            return
        yield sizes
        previous, factor = sizes, 2 * factor


def _ascending(subject: Subject, sizes: list[Sizes]) -> list[Sizes]:
    """Each of them once, the cheapest first."""
    once = {tuple(one.values()): one for one in sizes}.values()
    return sorted(once, key=lambda one: (_elements(subject, one), *one.values()))


def _elements(subject: Subject, sizes: Sizes) -> int:
    return subject.manifest.at(sizes).x.size


def _cost(subject: Subject, sizes: Sizes) -> _Cost:
    """Run a row. Raises AdmissionError as `_require`."""
    subject.rows(sizes, 1)  # the first time, it loads photographs
    began, peak = time.process_time(), Peak()
    _require(subject, sizes)
    return _Cost(time.process_time() - began, peak.nbytes)


def _require(subject: Subject, sizes: Sizes) -> None:
    """Raise AdmissionError, which names the axis, unless both graphs run at these sizes."""
    failure = _failure(subject, sizes)
    if failure is None:
        return
    default = subject.default
    at_default = failure if sizes == default else _failure(subject, default)
    if at_default is not None:
        graph, reason = at_default
        raise AdmissionError(
            f"{graph} does not run at its default size, {format_sizes(default)}: it {reason}. "
            "Correct the shapes of x and z in the card."
        )
    graph, reason = failure
    guilty = [
        name
        for name in sizes
        if sizes[name] != default[name]
        and _failure(subject, default | {name: sizes[name]}) is not None
    ]
    axes = format_list(guilty or list(sizes))
    tried = f"at {format_sizes(sizes)} it {reason}"
    if others := [name for name in guilty if _runs_elsewhere(subject, name, sizes[name])]:
        raise AdmissionError(
            f"{graph} does not take every {format_list(others)} of the card: {tried}. Correct "
            "min, max and multiple_of of that axis in the card's sizes."
        )
    raise AdmissionError(
        f"{graph} is frozen to one {axes}: it runs at {format_sizes(default)}, but {tried}. "
        f"Expected {axes} to be free: remove what fixes that axis in the model's code, export it "
        "with that axis dynamic, or give the card fixed sizes."
    )


def _runs_elsewhere(subject: Subject, name: str, length: int) -> bool:
    """Whether some length of this axis runs, besides the default and the one that failed."""
    axis, default = subject.manifest.axes[name], subject.default
    lengths = {axis.min, axis.nearest(axis.default * 3 // 2), axis.nearest(axis.default * 2)}
    lengths -= {axis.default, length}
    return any(_failure(subject, default | {name: other}) is None for other in lengths)


def _failure(subject: Subject, sizes: Sizes) -> tuple[str, str] | None:
    """The graph that fails at these sizes, and why; None: both run."""
    graph = "encoder.onnx"
    try:
        encoded = subject.graphs.encode(subject.rows(sizes, 1))
        _require_finite(graph, encoded, sizes)
        graph = "decoder.onnx"
        _require_finite(graph, subject.graphs.decode(encoded["mean"]), sizes)
    except GraphFailed as error:
        return graph, str(error)
    return None


def _require_finite(graph: str, outputs: Mapping[str, Array], sizes: Sizes) -> None:
    """Raise AdmissionError for NaN or infinity. Bytes hide them, which the check of extremes
    finds."""
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise AdmissionError(
                f"{graph} gives at {format_sizes(sizes)} a {name} that is not finite; expected "
                "finite numbers at every size of the card. Correct the model, or the card's sizes."
            )
