"""The objective that a step maximizes, in nats per example: the ELBO or a variant of it.

Variants weight the KL or tighten the bound.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentd.training import distributed, likelihoods
from latentd.training.config import Config
from latentd.training.dataset import RowSpec
from latentd.training.model import AE, Model, PosteriorSamples, latent_kl


def objective(
    model: Model, draws: PosteriorSamples, kl_weight: float | Tensor, free_bits: float
) -> Tensor:
    """The objective to maximize: (rows,). Several draws give the importance-weighted bound, one
    draw gives the ELBO with a weighted KL, and an autoencoder gives minus its distortion."""
    if isinstance(model, AE):
        return model.terms(draws).elbo
    if len(draws.z) > 1:
        return importance_weighted(draws)
    return -(draws.nll.mean(0) + kl_weight * kl_with_free_bits(draws, free_bits))


def importance_weighted(draws: PosteriorSamples) -> Tensor:
    """The log of the mean of p(x, z) / q(z|x) over draws: (rows,). Burda et al. (2016), eq. 8."""
    log_q = -0.5 * ((draws.z - draws.mean).square() * (-draws.log_var).exp() + draws.log_var)
    log_p = -0.5 * draws.z.square()  # the terms with 2 pi cancel
    log_weight = (log_p - log_q).flatten(2).sum(2) - draws.nll
    return torch.logsumexp(log_weight, 0) - math.log(len(log_weight))


def kl_with_free_bits(draws: PosteriorSamples, free_bits: float) -> Tensor:
    """The KL (rows,) with each latent's batch mean raised to at least `free_bits` nats. A latent
    below that gains nothing by falling further. Kingma et al. (2016), eq. 15."""
    cost = latent_kl(draws.mean, draws.log_var).flatten(1)
    if not free_bits:
        return cost.sum(1)
    total, rows = cost.detach().sum(0), cost.new_full((1,), len(cost))
    distributed.all_reduce_([total, rows])
    return torch.where(total / rows > free_bits, cost, free_bits).sum(1)


def describe_elbo(config: Config, spec: RowSpec | None = None) -> str:
    """A description of `elbo` in this config's log lines, for rows of `spec`."""
    if config.model == "ae":
        return "minus the reconstruction's distortion; an autoencoder has no ELBO"
    if config.likelihood == "bernoulli" and config.binarization == "none":
        return "cross-entropy of grey pixels: good to train on, not a likelihood of the data"
    if spec and spec.columns:
        return "ELBO of the columns as they are: a density in the units of their numbers"
    likelihood = likelihoods.of(config)
    if likelihood.density:
        return "ELBO of a density over pixels scaled to [0, 1]"
    if config.is_text:
        return "ELBO of the texts' bytes, each text's end included"
    if not likelihood.binary:
        return "ELBO of the bytes themselves"
    drawn = (
        "redrawn in each pass"
        if config.binarization == "dynamic"
        else f"drawn once with seed {config.binarization_seed}"
    )
    return f"ELBO of binarized pixels, {drawn}"


def describe_objective(config: Config) -> str:
    """A description of `objective` in this config's log lines."""
    if config.model == "ae":
        return "the elbo"
    if config.importance_samples > 1:
        return f"the importance-weighted bound of {config.importance_samples} draws"
    changes = [
        text
        for wanted, text in (
            (config.beta != 1, f"its KL times {config.beta:g}"),
            (config.kl_warmup_epochs, f"its KL rising in {config.kl_warmup_epochs:g} epochs"),
            (config.kl_cycles, f"its KL rising {config.kl_cycles} times"),
            (config.free_bits, f"{config.free_bits:g} nats of each latent free"),
        )
        if wanted
    ]
    return ", ".join(["the elbo", *changes])
