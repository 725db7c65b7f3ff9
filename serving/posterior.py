"""The posterior q(z | x) = N(mean, exp(log_var)) against the prior N(0, I), in nats.

Kingma and Welling (2014), "Auto-encoding variational Bayes"; Burda, Grosse and Salakhutdinov
(2016), "Importance weighted autoencoders".
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from latentd.latents import Latents

Nats = NDArray[np.float64]
"""float64, shape (rows,)."""

_quiet: Final = np.errstate(over="ignore", invalid="ignore")
"""Rows far from a model's training data may give results that are not finite; callers check."""


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
