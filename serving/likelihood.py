"""Log-densities of rows in nats, from what the graphs give: p(x | z), KL to the prior, weights.

Kingma and Welling (2014), "Auto-encoding variational Bayes"; Burda, Grosse and Salakhutdinov
(2016), "Importance weighted autoencoders".
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from serving.bundle import XSpec
from serving.latents import Latents

Nats = NDArray[np.float64]
"""float64, shape (rows,)."""

_LOG_2PI: Final = math.log(2 * math.pi)


def scaled(x: NDArray[Any], spec: XSpec) -> NDArray[np.float32]:
    """x brought from its value range to [0, 1], float32, as the likelihoods see it."""
    low, high = spec.range
    values: NDArray[np.float32] = x.astype(np.float32)
    values -= np.float32(low)
    values /= np.float32(high - low)
    return values


def binarised(x: NDArray[Any], spec: XSpec) -> NDArray[Any]:
    """x with every element at the end of its range that is nearer; the middle goes up."""
    low, high = spec.range
    values: NDArray[Any] = np.where(x >= (low + high) / 2, high, low).astype(x.dtype)
    return values


def log_likelihood(x: NDArray[np.float32], params: NDArray[np.float32], likelihood: str) -> Nats:
    """log p(x | z) of each row.

    x:      shape (rows, *shape), scaled to [0, 1]
    params: shape (rows, parameters, *shape), from the decoder
    """
    rows = len(x)
    if likelihood == "bernoulli":
        logits = params[:, 0]
        terms = x * logits - _softplus(logits)
    elif likelihood == "discretised-logistic":
        terms = _log_discretised_logistic(x, params[:, 0], params[:, 1])
    else:
        mean, log_std = params[:, 0], params[:, 1]
        terms = -0.5 * (np.square((x - mean) * np.exp(-log_std)) + _LOG_2PI) - log_std
    return _sum(terms.reshape(rows, -1))


def _softplus(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """log(1 + exp(logits)) of each, as max(logits, 0) + log(1 + exp(-|logits|)).

    Within float32's step at 1, 1.2e-7. numpy has vector code for all of this and none for
    logaddexp, which takes seven times as long: as long as a small decoder itself.
    """
    terms = np.abs(logits)
    np.negative(terms, out=terms)
    np.exp(terms, out=terms)
    terms += np.float32(1)
    np.log(terms, out=terms)
    terms += np.maximum(logits, np.float32(0))
    return terms


def _log_discretised_logistic(
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
    inside = log_below_upper + log_above_lower + np.log(-np.expm1(-sharpness / np.float32(255)))
    terms: NDArray[np.float32] = np.where(
        x == 0, log_below_upper, np.where(x == 1, log_above_lower, inside)
    )
    return terms


def kl_to_prior(mean: Latents, log_var: Latents) -> Nats:
    """KL(N(mean, exp(log_var)) || N(0, I)) of each row (Kingma and Welling, appendix B)."""
    terms = np.square(mean) + np.exp(log_var) - 1 - log_var
    return 0.5 * _sum(terms)


def log_prior_ratio(z: Latents, mean: Latents, log_var: Latents) -> Nats:
    """log p(z) - log q(z | x) of each row: the latent part of an importance weight."""
    deviation = np.square(z - mean) * np.exp(-log_var)
    return 0.5 * _sum(deviation + log_var - np.square(z))


def _sum(terms: NDArray[Any]) -> Nats:
    """Over a row's elements, in float64: hundreds of terms that nearly cancel."""
    sums: Nats = terms.sum(axis=1, dtype=np.float64)
    return sums
