"""What the model, the graphs and the manifest ask of a likelihood, p(x|z).

x is float32 (rows, *shape), scaled to [0, 1] if its elements are pixels. `params` holds what p(x|z)
depends on, made from the decoder's outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Likelihood(ABC):
    """-log p(x|z) of rows; the base of all likelihoods."""

    outputs: int  # network outputs for each element of x
    parameters: tuple[str, ...]  # the name of each parameter of an element of x
    bounded: bool = True  # defined for x in [0, 1] only
    density: bool = False  # p is a density, not a probability
    shared: bool = False  # the model adds the last parameter, one learned number for all elements
    binary: bool = False  # defined for 0 and 1: serving's Score moves each element to one of them

    @abstractmethod
    def terms(self, x: Tensor, params: Tensor) -> Tensor:
        """-log p(x|z) in nats as terms to be summed over each row: (rows, ...). Training sums them
        in float32, the graph that scores rows in float64."""

    def nll(self, x: Tensor, params: Tensor) -> Tensor:
        """-log p(x|z) in nats, summed over each row: (rows,)."""
        return self.terms(x, params).flatten(1).sum(1)


class IndependentLikelihood(Likelihood):
    """The elements of x are independent given z, so each has parameters and a mean of its own.
    params: float32 (rows, parameters, *shape)."""

    @abstractmethod
    def params(self, raw: Tensor) -> Tensor:
        """The network's unbounded outputs (rows, outputs, *shape) -> parameters."""

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """E[x|z], in the units of x: (rows, *shape)."""


class PixelLikelihood(IndependentLikelihood):
    """Of elements in [0, 1]. The network's outputs can be relative to a linear VAE's."""

    @abstractmethod
    def around(self, raw: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """The network's outputs around this mean (rows, *shape) and standard deviation (): those of
        0 give roughly these. Means are in units of the standard deviation."""
