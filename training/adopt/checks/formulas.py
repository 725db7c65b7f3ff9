"""The densities' formulas in numpy and float64. They share no code with the graphs."""

from __future__ import annotations

import numpy as np

from latentd.bundle import Likelihood
from latentd.training.array import Array


def log_prob(
    likelihood: Likelihood, x_range: tuple[float, float], x: Array, params: Array
) -> Array:
    """log p(x | z) of each element, (rows, *x's shape), of x as clients send it.

    x_range: of bytes, which the density has from 0 to 1
    """
    values, params = x.astype(np.float64), params.astype(np.float64)
    if x.dtype == np.uint8:
        values = values / x_range[1]
    match likelihood.name, likelihood.parameters:
        case "bernoulli", ("logit",):
            terms = values * params[:, 0] - np.logaddexp(0, params[:, 0])
        case "bernoulli", _:
            with np.errstate(divide="ignore", invalid="ignore"):
                white, black = (np.log(p).clip(-100) for p in (params[:, 0], 1 - params[:, 0]))
            terms = values * white + (1 - values) * black
        case "gaussian", _:
            width = np.exp(params[:, 1])
            squares = ((values - params[:, 0]) / width) ** 2
            terms = -squares / 2 - np.log(width * np.sqrt(2 * np.pi))
        case _:
            width = np.exp(params[:, 1])
            terms = -np.abs(values - params[:, 0]) / width - np.log(2 * width)
    return np.asarray(terms)
