"""Checks the likelihood: its graph, and whether it is read from the decoder as it was trained."""

from __future__ import annotations

from typing import Final

import numpy as np

from latentd.training.adopt.checks import formulas
from latentd.training.adopt.checks.finding import Finding
from latentd.training.adopt.checks.graphs import DensityGraph, Graph, GraphFailed
from latentd.training.adopt.checks.subject import Subject, from_unit
from latentd.training.array import Array
from latentd.training.errors import AdmissionError

_ROWS: Final = 8
_ROUNDING: Final = 1e-5  # of the sum of the sizes of all terms
_TIE: Final = 1e-4  # of log p(x | z): a model that ignores its latents has no gain
_MARGIN: Final = 0.05  # nats per value of x by which another reading must be better


def check(subject: Subject) -> Finding:
    """Compare log p(x | z) with its formula, of rows under their own latents and under others."""
    candidate, likelihood = subject.candidate, subject.manifest.likelihood
    if candidate.likelihood is None or likelihood is None:
        return Finding("none, as the card has no likelihood", {"likelihood": None})
    try:
        density = DensityGraph(candidate.likelihood)
    except GraphFailed as error:
        raise AdmissionError(f"likelihood.onnx {error}.") from None
    x = _rows(subject)
    z = subject.encode(x)["mean"]
    params = subject.decode(z)["params"]
    _require_form(subject, likelihood.parameters, params)
    difference = _difference(density, x, params, subject)
    if likelihood.binary:
        low, high = subject.manifest.x.range
        x = np.where(x >= (low + high) / 2, high, low).astype(x.dtype)
    own = density.log_prob(x, params)
    others = density.log_prob(x, np.roll(params, 1, axis=0))
    gain = float((own - others).mean())
    figures = {"rows": len(x), "max_relative_difference": difference, "nats_of_own_latent": gain}
    line = f"{likelihood.name} as its formula, but for {difference:.1g} of the sum; "
    if not subject.has_real_rows:
        return Finding(line + "not judged on rows, as no real ones were named", figures)
    if gain < -_TIE * max(1.0, float(np.abs(own).mean())):
        raise AdmissionError(
            f"Real rows are likelier with the latents of other rows than with their own, by "
            f"{-gain:.3g} nats; expected the opposite. Check the order of the tensors mean and "
            "log_var, and of decoded_x and decoded_width, and that both graphs are of one model."
        )
    _require_best_reading(subject, density, x, z, float(own.mean()))
    return Finding(
        f"{line}real rows are {gain:.3g} nats likelier with their own latents than with others",
        figures,
    )


def _rows(subject: Subject) -> Array:
    """Real rows, or what stands for them."""
    rows, x = subject.candidate.rows, subject.manifest.at(subject.cheap).x
    if rows is not None and rows.shape[1:] == x.shape:
        return np.asarray(rows[np.linspace(0, len(rows) - 1, min(_ROWS, len(rows))).astype(int)])
    if x.kind == "image":
        return from_unit(subject.pictures(subject.cheap, _ROWS), x.range, x.dtype)
    return subject.rows(subject.cheap, _ROWS)


def _require_form(subject: Subject, parameters: tuple[str, ...], params: Array) -> None:
    """Raise AdmissionError for logits that are called probabilities, or the other way around."""
    noise = subject.decode(subject.encode(subject.noise(subject.cheap, _ROWS))["mean"])["params"]
    low, high = float(min(params.min(), noise.min())), float(max(params.max(), noise.max()))
    inside = low >= 0 and high <= 1
    if parameters == ("probability",) and not inside:
        raise AdmissionError(
            f"The decoder gives {low:.3g} to {high:.3g}, which the card calls probabilities; "
            'expected 0 to 1. If these are logits, say so: decoded_x = "logits".'
        )
    if parameters == ("logit",) and inside:
        raise AdmissionError(
            f"The decoder gives {low:.3g} to {high:.3g} only, which the card calls logits; "
            "expected any numbers. If these are probabilities, say so: "
            'decoded_x = "probabilities".'
        )


def _difference(density: DensityGraph, x: Array, params: Array, subject: Subject) -> float:
    """The largest difference from the formula, as a part of the sum of the terms' sizes. Raises
    AdmissionError beyond rounding."""
    likelihood = subject.manifest.likelihood
    assert likelihood
    terms = formulas.log_prob(likelihood, subject.manifest.x.range, x, params)
    terms = terms.reshape(len(terms), -1)
    found, scale = density.log_prob(x, params), np.maximum(1, np.abs(terms).sum(axis=1))
    difference = float((np.abs(found - terms.sum(axis=1)) / scale).max())
    if not difference <= _ROUNDING:
        raise AdmissionError(
            f"likelihood.onnx differs from the {likelihood.name} density by {difference:.2g} of "
            "the sum of its terms; expected no more than rounding."
        )
    return difference


def _require_best_reading(
    subject: Subject, density: DensityGraph, x: Array, z: Array, declared: float
) -> None:
    """Raise AdmissionError if real rows are clearly likelier with another reading of the tensors
    that the decoder gives."""
    means = {
        correction: float(density.log_prob(x, Graph(decoder).run(z)["params"]).mean())
        for correction, decoder in subject.candidate.readings.items()
    }
    if not means:
        return
    correction = max(means, key=means.__getitem__)
    gain = means[correction] - declared
    if gain > _MARGIN * x[0].size:
        raise AdmissionError(
            f"Real rows are likelier, by {gain:.3g} nats, if the decoder's tensors are read in "
            f"another way than the card says. Correct the card: {correction}."
        )
