"""p(x|z) of each kind of rows: its parameters from the decoder's outputs, -log p(x|z), its mean.

A likelihood is written once, here; its graph is exported from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from latentd.columns import Column
from latentd.training.config import Config
from latentd.training.likelihoods.categorical import Categorical
from latentd.training.likelihoods.likelihood import Likelihood, PixelLikelihood
from latentd.training.likelihoods.mixed import MixedLikelihood
from latentd.training.likelihoods.pixels import Bernoulli, DiscretizedLogistic, Gaussian

LIKELIHOODS: Final[dict[str, Callable[[Config], PixelLikelihood]]] = {
    "bernoulli": lambda config: Bernoulli(),
    "gaussian": lambda config: Gaussian(
        config.least_std, config.fixed_std, shared=config.std == "shared"
    ),
    "discretized-logistic": lambda config: DiscretizedLogistic(),
}
"""Those of pixels, by their names in Config.likelihood."""


def of(config: Config, columns: Sequence[Column] = ()) -> Likelihood:
    """The likelihood of a run. columns: of rows in units of their own."""
    if columns:
        return MixedLikelihood(config, columns)
    if config.likelihood == "categorical":
        return Categorical()
    return LIKELIHOODS[config.likelihood](config)
