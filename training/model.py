"""The variational autoencoder and the plain autoencoder, on the same net.

Rows have the data's own form: uint8 in 0..255 or float32 in [0, 1]. Only this module scales them,
so the exported graphs contain the scaling. Rows of text are bytes and are not scaled. Rows with
columns are float32 in units of their own, which `likelihoods.mixed` scales.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from latentd.decoding import GREEDY
from latentd.training import likelihoods, networks
from latentd.training.config import Config
from latentd.training.dataset import RowSpec
from latentd.training.likelihoods.likelihood import (
    IndependentLikelihood,
    Likelihood,
    PixelLikelihood,
)
from latentd.training.likelihoods.mixed import MixedLikelihood
from latentd.training.linear_vae import LinearVAE
from latentd.training.networks import gru
from latentd.training.networks.resnet import Decoder, Encoder

LOG_VAR_RANGE: Final = (-10.0, 4.0)
"""Bounds of q's log-variance. Above them, exp() eventually overflows. Below them, adding the noise
to the mean loses it, and the importance weights with it."""

POINT_LOG_VAR: Final = -100.0
"""An autoencoder's log_var. Adding a standard deviation of exp(-50) to any realistic float32 mean
changes nothing, so a server that draws z gets the mean itself."""

_LOG_STD: Final = -1.6  # where a shared standard deviation starts, without a linear path: 0.2


class Terms(NamedTuple):
    """The parts of the objective, each (rows,) in nats per example."""

    elbo: Tensor  # -(distortion + rate), to be maximized
    distortion: Tensor  # -log p(x|z), one draw of z
    rate: Tensor  # KL(q(z|x) || p(z))


class PosteriorSamples(NamedTuple):
    """q(z|x) of each row, draws of z from it, and -log p(x|z) for each draw."""

    mean: Tensor  # (rows, *latent_shape)
    log_var: Tensor  # (rows, *latent_shape)
    z: Tensor  # (samples, rows, *latent_shape)
    nll: Tensor  # -log p(x|z): (samples, rows), nats


class VAE(nn.Module):
    """q(z|x) = N(mean, exp(log_var)), p(z) = N(0, I). Kingma & Welling, 2014, arXiv:1312.6114."""

    def __init__(self, config: Config, spec: RowSpec) -> None:
        super().__init__()
        self.spec, self.latent_shape = spec, networks.latent_shape(config, spec.shape)
        self.stride = networks.stride(config)
        self.binarize = config.binarization == "dynamic"
        self.likelihood = likelihoods.of(config, spec.columns)
        mixed = self.likelihood if isinstance(self.likelihood, MixedLikelihood) else None
        # A part of the model, so that it moves with it.
        self.features = mixed.features if mixed else None
        shape = (mixed.features.width,) if mixed else spec.shape
        self.encoder, self.decoder = networks.build(
            config, shape, 2 * config.latent_size, self.likelihood.outputs
        )
        start = mixed.log_std_start if mixed else torch.tensor(_LOG_STD)
        self.log_std = nn.Parameter(start) if self.likelihood.shared else None
        pca = config.linear_path == "pca"
        self.linear = LinearVAE(spec.shape, config.latent_size) if pca else None

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (rows, *shape) -> mean, log_var: float32 (rows, *latent_shape)."""
        # float(): autocast makes the nets' outputs bfloat16, which is too coarse for exp and sums.
        x = self._encoder_input(x)
        mean, log_var = self.encoder(x).float().chunk(2, dim=1)
        if self.linear:
            linear_mean, linear_log_var = self.linear.encode(x)
            # In units of the posterior's deviation: the first steps would otherwise leave it far.
            mean = linear_mean + (0.5 * linear_log_var).exp() * mean
            log_var = linear_log_var + log_var
        return mean, log_var.clamp(*LOG_VAR_RANGE)

    def _encoder_input(self, x: Tensor) -> Tensor:
        if isinstance(self.likelihood, MixedLikelihood):
            return self.likelihood.inputs(x)
        return x if self.spec.text else to_unit(x)

    def decode(self, z: Tensor) -> Tensor:
        """float32 (rows, *latent_shape) -> params of p(x|z): float32 (rows, parameters, *shape)."""
        raw = self.decoder(z).float()
        if self.linear:
            assert isinstance(self.likelihood, PixelLikelihood), "the config is not resolved"
            raw = self.likelihood.around(raw, self.linear.decode(z), self.linear.std)
        if self.log_std is not None:
            raw = torch.cat((raw, self.log_std.expand_as(raw[:, :1])), dim=1)
        return _independent(self.likelihood).params(raw)

    def distortion(self, z: Tensor, x: Tensor) -> Tensor:
        """-log p(x|z) of target rows (rows, *shape): (rows,) nats."""
        params = self.decoder(z, x).float() if self.spec.text else self.decode(z)
        return self.likelihood.nll(x, params)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """What the decoder makes of a row at most: it decides how many rows fit into a batch."""
        shape = self.spec.shape
        if self.features:
            return tuple(self.features.used.shape)
        return (*shape, gru.BYTES) if self.spec.text else shape

    def target(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The target of the objective for rows in the data's form. Bytes of text stay."""
        return x if self.spec.text else to_target(x, generator, self.binarize)

    def fit_linear_path(self, x: Tensor, seed: int) -> None:
        """Start from the best linear VAE of training rows on the CPU, if there is a linear path."""
        if self.linear:
            self.linear.fit(x, seed)
            if self.log_std is not None:
                self.log_std.data.copy_(self.linear.std.log())
            for net in (self.encoder, self.decoder):
                assert isinstance(net, Encoder | Decoder), "the config is not resolved"
                net.silence()

    def draw(self, x: Tensor, noise: Tensor) -> PosteriorSamples:
        """x: from `target`, (rows, *shape); noise: N(0, I), (samples, rows, *latent_shape)."""
        mean, log_var = self.encode(x)
        z = mean + (0.5 * log_var).exp() * noise
        repeated = x if len(z) == 1 else x.repeat(len(z), *[1] * (x.ndim - 1))
        nll = self.distortion(z.flatten(0, 1), repeated)
        return PosteriorSamples(mean, log_var, z, nll.view(z.shape[:2]))

    def terms(self, draws: PosteriorSamples) -> Terms:
        """The ELBO and its parts. The distortion is averaged over the draws."""
        distortion, rate = draws.nll.mean(0), gaussian_kl(draws.mean, draws.log_var)
        return Terms(-(distortion + rate), distortion, rate)

    def forward(self, x: Tensor, generator: torch.Generator) -> Terms:
        """The ELBO of rows (rows, *shape), with one z drawn for each row from `generator`."""
        x = self.target(x, generator)
        return self.terms(self.draw(x, normal((1, len(x), *self.latent_shape), generator)))


class AE(nn.Module):
    """The VAE's net with a point as its code: z = mean. Without noise and KL, it has no bound on
    log p(x).

    Its elbo is -distortion. Compare it only with other autoencoders.
    """

    def __init__(self, config: Config, spec: RowSpec) -> None:
        super().__init__()
        self.net = VAE(config, spec)
        self.spec, self.likelihood = spec, self.net.likelihood
        self.latent_shape, self.stride = self.net.latent_shape, self.net.stride
        self.binarize = self.net.binarize

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As VAE.encode, but every log_var is POINT_LOG_VAR."""
        mean, _ = self.net.encode(x)
        return mean, torch.full_like(mean, POINT_LOG_VAR)

    def decode(self, z: Tensor) -> Tensor:
        """As VAE.decode."""
        return self.net.decode(z)

    def distortion(self, z: Tensor, x: Tensor) -> Tensor:
        """As VAE.distortion."""
        return self.net.distortion(z, x)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """As VAE.output_shape."""
        return self.net.output_shape

    def target(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """As VAE.target."""
        return self.net.target(x, generator)

    def fit_linear_path(self, x: Tensor, seed: int) -> None:
        """As VAE.fit_linear_path."""
        self.net.fit_linear_path(x, seed)

    def draw(self, x: Tensor, noise: Tensor) -> PosteriorSamples:
        """As VAE.draw, but every z is the mean."""
        mean, log_var = self.encode(x)
        return PosteriorSamples(mean, log_var, mean[None], self.distortion(mean, x)[None])

    def terms(self, draws: PosteriorSamples) -> Terms:
        """As VAE.terms, without a rate."""
        distortion = draws.nll.mean(0)
        return Terms(-distortion, distortion, torch.zeros_like(distortion))

    def forward(self, x: Tensor, generator: torch.Generator) -> Terms:
        """As VAE.forward, but `generator` is used only to binarize."""
        x = self.target(x, generator)
        return self.terms(self.draw(x, x.new_empty(0)))


Model = VAE | AE
MODELS: Final[dict[str, type[VAE] | type[AE]]] = {"vae": VAE, "ae": AE}


def build(config: Config, spec: RowSpec) -> Model:
    """A new model on the CPU. `config.seed` alone decides its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return MODELS[config.model](config, spec)


def to_unit(x: Tensor) -> Tensor:
    """Rows in the data's form -> float32 in [0, 1]."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


def to_data(model: Model, params: Tensor) -> Tensor:
    """E[x|z] in the data's form: the inverse of `to_unit`. Bytes are rounded half to even."""
    mean = _independent(model.likelihood).mean(params)
    return (mean * 255).round().to(torch.uint8) if model.spec.dtype == "uint8" else mean


def _independent(likelihood: Likelihood) -> IndependentLikelihood:
    """The likelihood of a model whose rows are not text. A text's bytes depend on one another."""
    assert isinstance(likelihood, IndependentLikelihood), "texts are decoded by gru.Decoder"
    return likelihood


def encoder_of(model: Model) -> nn.Module:
    """The net that encodes, also of an autoencoder."""
    return (model.net if isinstance(model, AE) else model).encoder


def text_decoder(model: Model) -> gru.Decoder:
    """The decoder of a model of text."""
    net = model.net if isinstance(model, AE) else model
    assert isinstance(net.decoder, gru.Decoder), "the model is not one of text"
    return net.decoder


def decoded(model: Model, z: Tensor) -> Tensor:
    """x for latents (rows, *latent_shape), in the data's form: E[x|z], or for text the likeliest
    byte after each before it."""
    if not model.spec.text:
        return to_data(model, model.decode(z))
    greedy = z.new_full((len(z), *model.spec.shape), GREEDY)
    return text_decoder(model).decode(torch.cat((z, greedy), dim=1)).x


def decoder_rows(model: Model, z: Tensor, choices: Tensor | None = None) -> Tensor:
    """Rows of decoder.onnx's input for latents (rows, *latent_shape). Rows with columns also take a
    choice for each of them: see `MixedLikelihood.draw`. None: the mean, or the likeliest level."""
    if not model.spec.columns:
        return z
    if choices is None:
        choices = z.new_full((len(z), len(model.spec.columns)), GREEDY)
    return torch.cat((z, choices), dim=1)


def log_likelihood(model: Model, x: Tensor, params: Tensor) -> Tensor:
    """log p(x|z) of rows in the data's form, computed in float64: (rows,)."""
    return -model.likelihood.nll(to_unit(x).double(), params.double())


def to_target(x: Tensor, generator: torch.Generator, binarize: bool) -> Tensor:
    """The target of the objective: x in [0, 1], or black and white pixels drawn from it.

    The chance of white is x, within 2e-5. Black stays black and white stays white. Bytes are
    compared with 16 random bits each, which is six times as fast on a CPU as torch.bernoulli.
    """
    if not binarize:
        return to_unit(x)
    if x.dtype != torch.uint8:
        return torch.bernoulli(x, generator=generator)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
    words.random_(-(1 << 63), None, generator=generator)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    # 257 x maps x to 0..65535. White is a random draw below it; both are shifted by -32768.
    low = x.to(torch.int16) * 257 - 32768
    return ((bits < low) | (x == 255)).float()


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draws from N(0, 1), on the generator's device."""
    return torch.randn(shape, generator=generator, device=generator.device)


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, exp(log_var)) || N(0, I)) in nats, (rows, *latent_shape) -> (rows,)."""
    return latent_kl(mean, log_var).flatten(1).sum(1)


def latent_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """Each latent's part of `gaussian_kl`: (rows, *latent_shape).

    Kingma & Welling, 2014, appendix B.
    """
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var)
