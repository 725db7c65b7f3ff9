"""Log-densities of rows in nats, from the graphs' outputs: p(x | z), KL to the prior, weights.

Kingma and Welling (2014), "Auto-encoding variational Bayes"; Burda, Grosse and Salakhutdinov
(2016), "Importance weighted autoencoders".
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from latentd.bundle import DataSpec
from latentd.latents import Latents

Nats = NDArray[np.float64]
"""float64, shape (rows,)."""

_quiet: Final = np.errstate(over="ignore", invalid="ignore")
"""Rows far from a model's training data may give results that are not finite; callers check."""

_LOG_2PI: Final = math.log(2 * math.pi)


def to_unit_interval(x: NDArray[Any], spec: DataSpec) -> NDArray[np.float32]:
    """x scaled from its value range to [0, 1], float32, as the likelihoods take it."""
    low, high = spec.range
    span = np.float32(high - low)
    values: NDArray[np.float32]
    if not low:  # one pass, and the same bits
        values = np.divide(x, span, dtype=np.float32)
        return values
    values = np.subtract(x, np.float32(low), dtype=np.float32)
    values /= span
    return values


def binarize(x: NDArray[Any], spec: DataSpec) -> NDArray[Any]:
    """x with every element moved to the nearer end of its range; the middle moves up."""
    low, high = spec.range
    values: NDArray[Any] = np.where(x >= (low + high) / 2, high, low).astype(x.dtype)
    return values


@_quiet
def log_prob(x: NDArray[np.float32], params: NDArray[np.float32], likelihood: str) -> Nats:
    """log p(x | z) of each row.

    x:      shape (rows, *shape), scaled to [0, 1]
    params: shape (rows, parameters, *shape), from the decoder
    """
    if likelihood == "bernoulli":
        return _log_bernoulli(x, params[:, 0])
    if likelihood == "discretized-logistic":
        terms = _log_discretized_logistic(x, params[:, 0], params[:, 1])
    else:
        mean, log_std = params[:, 0], params[:, 1]
        terms = -0.5 * (np.square((x - mean) * np.exp(-log_std)) + _LOG_2PI) - log_std
    return _sum(terms)


def _log_bernoulli(x: NDArray[np.float32], logits: NDArray[np.float32]) -> Nats:
    """The sum of x l - log(1 + exp(l)), as x l - max(l, 0) - log(1 + exp(-|l|)).

    Each term's error is within float32's step at 1, 1.2e-7. No term is above 0, so numpy's pairwise
    sums lose nothing in float32. It uses only functions with vector code in numpy: logaddexp takes
    seven times as long, as long as a small decoder. Its two arrays stay in the processor's cache.
    """
    size = np.abs(logits)
    terms = logits + size
    terms *= np.float32(-0.5)  # exactly -max(l, 0)
    np.negative(size, out=size)
    np.exp(size, out=size)
    size += np.float32(1)
    np.log(size, out=size)
    terms -= size
    np.multiply(x, logits, out=size)
    terms += size
    sums: Nats = terms.reshape(len(x), -1).sum(axis=1).astype(np.float64)
    return sums


def _log_discretized_logistic(
    x: NDArray[np.float32], mean: NDArray[np.float32], log_scale: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The log of a logistic distribution's mass within half a level, 1/510, of each byte; 0 and
    255 have the tails. Salimans et al. (2017), "PixelCNN++"."""
    zero, sharpness = np.float32(0), np.exp(-log_scale)
    above = (x - mean + np.float32(1 / 510)) * sharpness
    below = (x - mean - np.float32(1 / 510)) * sharpness
    log_below_upper = -np.logaddexp(zero, -above)  # log sigmoid(above)
    log_above_lower = -np.logaddexp(zero, below)
    # sigmoid(above) - sigmoid(below), factored so that nothing cancels.
    between = log_below_upper + log_above_lower + np.log(-np.expm1(-sharpness / np.float32(255)))
    terms: NDArray[np.float32] = np.where(
        x == 0, log_below_upper, np.where(x == 1, log_above_lower, between)
    )
    return terms


@_quiet
def kl_to_standard_normal(mean: Latents, log_var: Latents) -> Nats:
    """KL(N(mean, exp(log_var)) || N(0, I)) of each row (Kingma and Welling, appendix B)."""
    terms = np.square(mean) + np.exp(log_var) - 1 - log_var
    return 0.5 * _sum(terms)


@_quiet
def log_prior_ratio(z: Latents, mean: Latents, log_var: Latents) -> Nats:
    """log p(z) - log q(z | x) of each row: the latent part of an importance weight."""
    deviation = np.square(z - mean) * np.exp(-log_var)
    return 0.5 * _sum(deviation + log_var - np.square(z))


def _sum(terms: NDArray[Any]) -> Nats:
    """Sum over a row's elements, in float64, as hundreds of terms nearly cancel."""
    sums: Nats = terms.reshape(len(terms), -1).sum(axis=1, dtype=np.float64)
    return sums
