"""Scores of the owner's real rows, so that jobs can say how unusual another row is."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from latentd.bundle import Manifest
from latentd.training import quantiles
from latentd.training.adopt.checks.graphs import DensityGraph, Graph
from latentd.training.array import Array

FEWEST: Final = 100
"""Rows that are too few for percentiles."""
_BATCH_ELEMENTS: Final = 1 << 20  # of x


def of(
    manifest: Manifest, encoder: bytes, decoder: bytes, likelihood: bytes, rows: Array
) -> dict[str, Any]:
    """Manifest.training_scores, computed as in serving: by the graphs, through the mean."""
    encode, decode, density = Graph(encoder), Graph(decoder), DensityGraph(likelihood)
    picked = rows[quantiles.evenly_picked(len(rows))]
    batch = max(1, _BATCH_ELEMENTS // manifest.default.x.size)
    errors, kls = [], []
    for start in range(0, len(picked), batch):
        x = picked[start : start + batch]
        latent = encode.run(x)
        errors.append(-density.log_prob(x, decode.run(latent["mean"])["params"]))
        kls.append(_kl(latent["mean"].astype(np.float64), latent["log_var"].astype(np.float64)))
    return quantiles.score_quantiles(np.concatenate(errors), np.concatenate(kls))


def summary(manifest: Manifest, rows: Array | None) -> str:
    """Why there are no percentiles, in words; "": there can be."""
    if "score" in manifest.unavailable:
        return f"none, as the model {manifest.unavailable['score']}"
    if rows is None:
        return "none, as no real rows were named; --rows does"
    if len(rows) < FEWEST:
        return f"none, as {len(rows)} rows are too few; --rows with {FEWEST} or more gives them"
    return ""


def _kl(mean: Array, log_var: Array) -> Array:
    """KL(N(mean, exp(log_var)) || N(0, I)) of each row."""
    terms = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var)
    sums: Array = terms.reshape(len(terms), -1).sum(axis=1)
    return sums
