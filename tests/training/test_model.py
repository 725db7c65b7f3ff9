"""The objective against torch.distributions, and the shapes of every net."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from latentd.training.config import Config
from latentd.training.dataset import RowSpec
from latentd.training.errors import TrainingError
from latentd.training.likelihoods import LIKELIHOODS
from latentd.training.model import (
    LOG_VAR_RANGE,
    POINT_LOG_VAR,
    build,
    gaussian_kl,
    to_data,
    to_target,
    to_unit,
)
from latentd.training.networks import resolve_architecture

SPEC = RowSpec((8, 9), "uint8")


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(spec: RowSpec, count: int = 5) -> torch.Tensor:
    x = torch.randint(0, 256, (count, *spec.shape), dtype=torch.uint8, generator=seeded())
    return x if spec.dtype == "uint8" else x / 255


def model(spec: RowSpec = SPEC, **settings: Any) -> Any:
    tiny = {"latent_size": 3, "hidden_size": 8, **settings}
    return build(resolve_architecture(Config(**tiny), spec.shape), spec).eval()


def test_kl_equals_torch_distributions() -> None:
    mean, log_var = torch.randn(2, 7, 4, generator=seeded())
    q = Independent(Normal(mean, (0.5 * log_var).exp()), 1)
    p = Independent(Normal(torch.zeros(7, 4), torch.ones(7, 4)), 1)
    torch.testing.assert_close(gaussian_kl(mean, log_var), kl_divergence(q, p))


@pytest.mark.parametrize("binarization", ["none", "dynamic"])
def test_bernoulli_elbo_equals_torch_distributions(binarization: str) -> None:
    vae, x = model(likelihood="bernoulli", binarization=binarization), rows(SPEC)
    terms = vae(x, seeded())

    draws = seeded()
    target = to_unit(x)
    if binarization == "dynamic":
        target = to_target(x, draws, binarize=True)
        assert set(target.unique().tolist()) == {0.0, 1.0}
    mean, log_var = vae.encode(target)
    z = Normal(mean, (0.5 * log_var).exp())
    sample = mean + z.stddev * torch.randn(mean.shape, generator=draws)
    px = Bernoulli(logits=vae.decode(sample)[:, 0], validate_args=False)
    distortion = -px.log_prob(target).sum((1, 2))
    rate = kl_divergence(z, Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(terms.distortion, distortion)
    torch.testing.assert_close(terms.rate, rate)
    torch.testing.assert_close(terms.elbo, -distortion - rate)
    assert terms.elbo.shape == (5,)


def test_gaussian_elbo_equals_torch_distributions() -> None:
    vae, x = model(likelihood="gaussian", min_std=0.1), rows(SPEC)
    terms = vae(x, seeded())
    mean, log_var = vae.encode(x)
    std = (0.5 * log_var).exp()
    params = vae.decode(mean + std * torch.randn(mean.shape, generator=seeded()))
    px = Normal(params[:, 0], params[:, 1].exp())
    assert (px.stddev >= 0.1).all()
    torch.testing.assert_close(terms.distortion, -px.log_prob(to_unit(x)).sum((1, 2)))
    torch.testing.assert_close(terms.elbo, -terms.distortion - terms.rate)


def test_gaussian_std_has_a_minimum() -> None:
    vae = model(likelihood="gaussian", min_std=0.1)
    raw = torch.full((1, 2, 8, 9), -1e4)
    torch.testing.assert_close(vae.likelihood.params(raw)[:, 1].exp(), torch.full((1, 8, 9), 0.1))


def test_log_var_is_clamped() -> None:
    vae = model()
    with torch.no_grad():
        vae.encoder[-1].weight.mul_(1e6)
    _, log_var = vae.encode(rows(SPEC))
    assert (log_var.min().item(), log_var.max().item()) == LOG_VAR_RANGE


def test_ae_equals_the_vae_without_noise_and_kl() -> None:
    vae, ae, x = model(), model(model="ae"), rows(SPEC)
    assert sum(p.numel() for p in ae.parameters()) == sum(p.numel() for p in vae.parameters())
    mean, log_var = ae.encode(x)
    torch.testing.assert_close(mean, vae.encode(x)[0])  # the same seed, the same weights
    assert (log_var == POINT_LOG_VAR).all()
    first, second = ae(x, seeded(1)), ae(x, seeded(2))
    assert torch.equal(first.elbo, second.elbo)
    assert torch.equal(first.elbo, -ae.likelihood.nll(to_unit(x), ae.decode(mean)))
    assert not first.rate.any()
    # A server that draws z from the exported log_var gets the mean itself.
    drawn = mean + (0.5 * log_var).exp() * torch.randn(mean.shape, generator=seeded())
    assert torch.equal(drawn, mean)
    assert not torch.equal(vae(x, seeded(1)).elbo, vae(x, seeded(2)).elbo)


def test_bytes_survive_a_round_trip() -> None:
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    net = model(RowSpec((16, 16), "uint8"), likelihood="gaussian")
    params = torch.stack((to_unit(every), torch.zeros(1, 16, 16)), dim=1)
    assert torch.equal(to_data(net, params), every)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize(
    ("net", "shape", "depth"),
    [
        ("mlp", (7,), 1),
        ("mlp", (5, 6), 3),
        ("mlp", (5, 6, 3), 2),
        ("iwae", (5, 6), 2),
        ("gated", (7,), 1),
        ("gated", (5, 6, 3), 2),
        ("resnet", (8, 8), 2),
        ("resnet", (28, 28, 1), 2),
        ("resnet", (9, 31, 3), 2),
        ("resnet", (33, 17, 3), 3),
        ("resnet", (128, 128, 3), 4),
    ],
)
def test_every_net_returns_its_declared_shapes(
    net: str, shape: tuple[int, ...], depth: int, likelihood: str, dtype: str
) -> None:
    spec = RowSpec(shape, dtype)
    vae, x = model(spec, architecture=net, depth=depth, likelihood=likelihood), rows(spec)
    mean, log_var = vae.encode(x)
    assert mean.shape == log_var.shape == (5, 3)
    params = vae.decode(mean)
    assert params.shape == (5, len(vae.likelihood.parameters), *shape)
    again = to_data(vae, params)
    assert (again.shape, again.dtype) == (x.shape, x.dtype)
    terms = vae(x, seeded())
    (-terms.elbo.mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())


@pytest.mark.parametrize(
    ("net", "parameters"),
    [
        # Weights and biases of 784-200-200-(2 x 50) and back, as Burda et al. count layers.
        ("iwae", 157_000 + 40_200 + 20_100 + 10_200 + 40_200 + 157_584),
        # Each hidden layer has two matrices: A and B.
        ("gated", 471_000 + 180_600 + 30_100 + 30_600 + 180_600 + 235_984),
    ],
)
def test_nets_have_the_parameter_counts_of_their_papers(net: str, parameters: int) -> None:
    config = resolve_architecture(
        Config(architecture=net, latent_size=50, likelihood="bernoulli"), (28, 28)
    )
    built = build(config, RowSpec((28, 28), "uint8"))
    assert sum(p.numel() for p in built.parameters()) == parameters


def test_gated_layer_is_a_linear_layer_times_a_gate() -> None:
    vae = model(RowSpec((7,), "float32"), architecture="gated", depth=1)
    x = rows(RowSpec((7,), "float32"))
    _, layer, _, head = vae.encoder
    a, b = layer(x).chunk(2, dim=1)
    mean, _ = head(a * b.sigmoid()).chunk(2, dim=1)
    torch.testing.assert_close(vae.encode(x)[0], mean)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_binarized_pixels_are_white_with_their_brightness_as_probability(dtype: str) -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    x = levels.repeat(20_000, 1)
    drawn = to_target(x if dtype == "uint8" else x / 255, seeded(), binarize=True)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    often, chance = drawn.double().mean(0), levels.double() / 255
    assert often[0] == 0  # black stays black, and white stays white
    assert often[255] == 1
    deviation = (often - chance) / (chance * (1 - chance) / 20_000).sqrt().clamp(min=1e-9)
    assert deviation[1:255].abs().max() < 4.5
    assert deviation[1:255].square().mean() < 1.4  # they vary like independent draws
    torch.testing.assert_close(torch.corrcoef(drawn[:, 100:103].T), torch.eye(3), atol=0.03, rtol=0)


def test_resnet_keeps_colors_apart() -> None:
    """Inputs and outputs have channels last: the three colors of a pixel stay together."""
    spec = RowSpec((8, 12, 3), "float32")
    vae = model(spec, architecture="resnet", likelihood="gaussian", std="pixel")
    with torch.no_grad():
        last = vae.decoder.last
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0, 0, 0]))  # (parameter, color)
    picture = to_data(vae, vae.decode(torch.zeros(1, 3)))
    torch.testing.assert_close(picture, torch.tensor([0.1, 0.2, 0.3]).expand(1, 8, 12, 3))


@pytest.mark.parametrize(
    ("shape", "net"),
    [
        ((8, 8), "mlp"),
        ((27, 40, 3), "mlp"),
        ((28, 28), "resnet"),
        ((64, 30, 3), "resnet"),
        ((9,), "mlp"),
    ],
)
def test_auto_net_follows_the_shape(shape: tuple[int, ...], net: str) -> None:
    assert resolve_architecture(Config(), shape).architecture == net


def test_resnet_rejects_vectors() -> None:
    with pytest.raises(TrainingError, match="Use --architecture mlp"):
        resolve_architecture(Config(architecture="resnet"), (784,))
