"""Compares the declared range and order of channels with the usual others, on real pictures.

A net reconstructs pictures best in the form that it was trained on. It may do nearly as well with
less contrast: a net trained on -1..1 that is declared as 0..1 is not always found. Nor is the order
of channels: good nets reconstruct pictures whose red and blue are exchanged almost as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

from latentd.training.adopt.candidate import NetRange
from latentd.training.adopt.checks import unrounded
from latentd.training.adopt.checks.finding import Finding
from latentd.training.adopt.checks.graphs import Graph, GraphFailed
from latentd.training.adopt.checks.subject import Subject, format_list
from latentd.training.array import Array
from latentd.training.errors import AdmissionError

_ROWS: Final = 16
_FEW_ROWS: Final = 4  # of models that only take large pictures
_MAX_ELEMENTS: Final = 1 << 18  # in all of more rows
_USUAL: Final = {"0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0), "0..255": (0.0, 255.0)}
_MARGIN: Final = 3.0  # decibels by which another range must be better
_ORDER_MARGIN: Final = 0.3  # the same of the other order of channels: nets hardly need colors
_ERRORS: Final = 4.0  # standard errors by which the other order must be better
_WORTH: Final = 1.0  # decibels that a reconstruction must be better than one flat color
_VISIBLE: Final = 0.05  # decibels that are told
_MAX_DECIBELS: Final = 100.0


class _Form(NamedTuple):
    """How the net takes pictures."""

    range: str
    reversed: bool  # channels in the other order than declared


def check(subject: Subject) -> Finding:
    """Reconstruct pictures in each form, and compare the noise."""
    x = subject.manifest.default.x
    if x.kind != "image" or not math.isfinite(x.range[1] - x.range[0]):
        return _not_judged(f"x holds {x.plural}" if x.kind != "image" else "x has no range")
    try:
        graphs = (
            Graph(unrounded.encoder(subject.candidate.encoder)),
            Graph(unrounded.decoder(subject.candidate.decoder)),
        )
        found = _decibels(subject, *graphs)
    except GraphFailed:
        return _not_judged("the graphs take and give nothing but bytes")
    rows = _pictures(subject)
    flat = float(_noise(rows, rows.mean((1, 2), keepdims=True)).mean())
    means = {form: float(values.mean()) for form, values in found.items()}
    declared = next(iter(found))
    # Linear nets take every range alike: of equals, the declared form or its range.
    alike = [form for form in means if means[form] > max(means.values()) - _VISIBLE]
    best = min(alike, key=lambda form: (form.range != declared.range, form.reversed))
    if means[best] < flat + _WORTH:
        return _not_judged(
            f"no form gives photographs better, at most {means[best]:.1f} dB, than one flat color "
            f"of {flat:.1f} dB; name pictures of the model's own kind with --images"
        )
    _require_best(subject, declared, best, found)
    figures = {_name(subject, form): round(value, 2) for form, value in means.items()}
    line = ", ".join(f"{name} {value:.1f} dB" for name, value in figures.items())
    gain = means[best] - means[declared]
    verdict = "as declared is best"
    if len(alike) == len(means):
        verdict = "every form is as good, so this does not show which is right"
    elif best == declared and len(alike) > 1:
        others = format_list([_name(subject, form) for form in alike if form != declared])
        verdict = f"none is better than as declared, and as good: {others}"
    if best != declared:
        verdict = f"{_name(subject, best)} is better by {gain:.1f} dB, which is too little to tell"
    return Finding(f"{verdict}: {line}", {"decibels": figures, "rows": len(rows)})


def _require_best(
    subject: Subject, declared: _Form, best: _Form, found: Mapping[_Form, Array]
) -> None:
    """Raise AdmissionError if another form is clearly better than the declared one."""
    gains = found[best] - found[declared]
    gain, margin = float(gains.mean()), _MARGIN
    if best.range == declared.range:
        margin = max(_ORDER_MARGIN, _ERRORS * float(gains.std()) / math.sqrt(len(gains)))
    if best == declared or gain < margin:
        return
    raise AdmissionError(
        f"The model reconstructs pictures better as {_name(subject, best)} than as declared, "
        f"{_name(subject, declared)}: by {gain:.1f} dB, {float(found[best].mean()):.1f} instead of "
        f"{float(found[declared].mean()):.1f}; expected the declared form to be the best, give or "
        f"take {margin:.1f} dB. Correct the card: {_correction(subject, declared, best)}."
    )


def _correction(subject: Subject, declared: _Form, best: _Form) -> str:
    parts = []
    if best.range != declared.range:
        parts.append(f"the range is {best.range}")
    if best.reversed:
        parts.append(f"the order of channels is {_order(subject, best)}")
    return " and ".join(parts)


def _order(subject: Subject, form: _Form) -> str:
    declared = subject.candidate.color_order
    return declared[::-1] if form.reversed else declared


def _name(subject: Subject, form: _Form) -> str:
    if subject.manifest.default.x.shape[2:] != (3,):
        return form.range
    return f"{form.range} {_order(subject, form)}"


def _decibels(subject: Subject, encode: Graph, decode: Graph) -> dict[_Form, Array]:
    """Of each form, the declared one first, each row's peak signal-to-noise ratio."""
    rows = _pictures(subject)
    declared = _declared(subject)
    ranges = {_range_name(declared): declared}
    for name, (low, high) in _USUAL.items():
        ranges.setdefault(name, NetRange((low,), (high,)))
    orders = (False, True) if rows.shape[3:] == (3,) else (False,)
    found = {}
    for reverse in orders:
        given = rows[..., ::-1] if reverse else rows
        for name, range_ in ranges.items():
            back = _through(subject, encode, decode, given, declared, range_)
            found[_Form(name, reverse)] = _noise(given, back)
    return found


def _through(
    subject: Subject, encode: Graph, decode: Graph, rows: Array, own: NetRange, other: NetRange
) -> Array:
    """Reconstruct rows from 0 to 1 as a net of the range `other` does. The graphs convert to the
    range `own`, so x is what they convert to the values in `other`."""
    low, high = subject.manifest.default.x.range
    own_low, own_width = np.array(own.low), np.array(own.high) - own.low
    other_low, other_width = np.array(other.low), np.array(other.high) - other.low
    back = []
    for row in rows:  # one at a time: of this form the batch was not checked
        unit = (other_low + row[None] * other_width - own_low) / own_width
        x = (low + unit * (high - low)).astype(np.float32)
        found = decode.run(encode.run(x)["mean"])["x"].astype(np.float64)
        unit = (found - low) / (high - low)
        back.append((own_low + unit * own_width - other_low) / other_width)
    return np.concatenate(back)


def _noise(rows: Array, back: Array) -> Array:
    """The peak signal-to-noise ratio of each row, in decibels."""
    with np.errstate(invalid="ignore", over="ignore"):
        errors = (np.nan_to_num(back, nan=0.5).clip(0, 1) - rows) ** 2
    means = errors.mean(tuple(range(1, rows.ndim)))
    result: Array = -10 * np.log10(np.maximum(means, 10 ** (-_MAX_DECIBELS / 10)))
    return result


def _pictures(subject: Subject) -> Array:
    elements = subject.manifest.at(subject.cheap).x.size
    return subject.pictures(subject.cheap, max(_FEW_ROWS, min(_ROWS, _MAX_ELEMENTS // elements)))


def _declared(subject: Subject) -> NetRange:
    if subject.candidate.net_range:
        return subject.candidate.net_range
    low, high = subject.manifest.x.range
    return NetRange((low,), (high,))


def _range_name(given: NetRange) -> str:
    if len({*given.low}) > 1 or len({*given.high}) > 1:
        return "mean and std"
    return f"{given.low[0]:g}..{given.high[0]:g}"


def _not_judged(reason: str) -> Finding:
    return Finding(f"not judged: {reason}", {"not_judged": reason})
