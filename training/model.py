"""The variational autoencoder, and the plain one on the same net.

Rows come as the data has them, uint8 in 0..255 or float32 in [0, 1]: scaling lives here, and only
here, so that the exported graphs hold it too.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from training import networks
from training.config import Config
from training.data import RowSpec
from training.likelihoods import LIKELIHOODS

LOG_VAR_RANGE: Final = (-10.0, 4.0)
"""Bounds of log q's variance: outside, exp() would overflow or the KL's gradient vanish."""

POINT_LOG_VAR: Final = -100.0
"""An autoencoder's log_var: a standard deviation of exp(-50) is lost when added to any float32
mean worth the name, so a server that draws z gets the mean itself."""


class Terms(NamedTuple):
    """The objective, each (rows,) in nats per example."""

    elbo: Tensor  # -(distortion + rate), to be raised
    distortion: Tensor  # -log p(x|z), one draw of z
    rate: Tensor  # KL(q(z|x) || p(z))


class VAE(nn.Module):
    """q(z|x) = N(mean, exp(log_var)), p(z) = N(0, I). Kingma & Welling, 2014, arXiv:1312.6114."""

    def __init__(self, config: Config, spec: RowSpec) -> None:
        super().__init__()
        self.spec = spec
        self.binarise = config.binarisation == "dynamic"
        self.likelihood = LIKELIHOODS[config.likelihood](config)
        self.encoder, self.decoder = networks.build(
            config, spec.shape, 2 * config.latent_size, self.likelihood.parameters
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (rows, *shape) -> mean, log_var: float32 (rows, latent_size)."""
        mean, log_var = self.encoder(unit(x)).chunk(2, dim=1)
        return mean, log_var.clamp(*LOG_VAR_RANGE)

    def decode(self, z: Tensor) -> Tensor:
        """float32 (rows, latent_size) -> params of p(x|z): float32 (rows, parameters, *shape)."""
        return self.likelihood.params(self.decoder(z))

    def forward(self, x: Tensor, generator: torch.Generator) -> Terms:
        """The objective for rows (rows, *shape), z drawn once for each from `generator`."""
        x = observe(x, generator, self.binarise)
        mean, log_var = self.encode(x)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        z = mean + (0.5 * log_var).exp() * noise
        distortion = self.likelihood.nll(x, self.decode(z))
        rate = gaussian_kl(mean, log_var)
        return Terms(-(distortion + rate), distortion, rate)


class AE(nn.Module):
    """The VAE's net with a point for a code: z = mean, no noise, no KL, so no bound on log p(x).

    Its elbo is -distortion, to be compared with other autoencoders' only.
    """

    def __init__(self, config: Config, spec: RowSpec) -> None:
        super().__init__()
        self.net = VAE(config, spec)
        self.spec, self.likelihood = spec, self.net.likelihood

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As VAE.encode; log_var is POINT_LOG_VAR throughout."""
        mean, _ = self.net.encode(x)
        return mean, torch.full_like(mean, POINT_LOG_VAR)

    def decode(self, z: Tensor) -> Tensor:
        """As VAE.decode."""
        return self.net.decode(z)

    def forward(self, x: Tensor, generator: torch.Generator) -> Terms:
        """As VAE.forward; `generator` only binarises."""
        x = observe(x, generator, self.net.binarise)
        mean, _ = self.encode(x)
        distortion = self.likelihood.nll(x, self.decode(mean))
        return Terms(-distortion, distortion, torch.zeros_like(distortion))


Model = VAE | AE
MODELS: Final[dict[str, type[VAE] | type[AE]]] = {"vae": VAE, "ae": AE}


def build(config: Config, spec: RowSpec) -> Model:
    """A fresh model on the CPU, its weights decided by `config.seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return MODELS[config.model](config, spec)


def unit(x: Tensor) -> Tensor:
    """Rows as the data has them -> float32 in [0, 1]."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


def render(model: Model, params: Tensor) -> Tensor:
    """E[x|z] as the data has its rows: the inverse of `unit`, bytes rounded half to even."""
    mean = model.likelihood.mean(params)
    return (mean * 255).round().to(torch.uint8) if model.spec.dtype == "uint8" else mean


def observe(x: Tensor, generator: torch.Generator, binarise: bool) -> Tensor:
    """What the objective is about: x in [0, 1], or black and white pixels drawn from it."""
    return torch.bernoulli(unit(x), generator=generator) if binarise else unit(x)


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, exp(log_var)) || N(0, I)) in nats, (rows, latent_size) -> (rows,).

    Kingma & Welling, 2014, appendix B.
    """
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)
