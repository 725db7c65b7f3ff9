"""The objective of a step against independently written definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal

from latentd.training.config import Config
from latentd.training.dataset import RowSpec
from latentd.training.model import PosteriorSamples, build, gaussian_kl, latent_kl, to_unit
from latentd.training.networks import resolve_architecture
from latentd.training.objective import (
    describe_objective,
    importance_weighted,
    kl_with_free_bits,
    objective,
)

SPEC = RowSpec((4, 5), "uint8")


def model(**settings: Any) -> Any:
    config = Config(latent_size=3, hidden_size=8, likelihood="bernoulli", **settings)
    return build(resolve_architecture(config, SPEC.shape), SPEC)


def draws(net: Any, k: int, rows: int = 6) -> tuple[torch.Tensor, PosteriorSamples]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 2, (rows, 4, 5), generator=generator).float()
    return x, net.draw(x, 3 * torch.randn(k, rows, 3, generator=generator))


def test_objective_is_the_elbo_by_default() -> None:
    net = model()
    _, drawn = draws(net, 1)
    torch.testing.assert_close(objective(net, drawn, 1.0, 0.0), net.terms(drawn).elbo)


def test_beta_weights_the_kl() -> None:
    net = model()
    _, drawn = draws(net, 1)
    terms = net.terms(drawn)
    raised = objective(net, drawn, 0.25, 0.0)
    torch.testing.assert_close(raised, -terms.distortion - 0.25 * terms.rate)
    torch.testing.assert_close(terms.elbo, -terms.distortion - terms.rate)  # logged nevertheless


@pytest.mark.parametrize("k", [2, 7])
def test_importance_weighted_bound_equals_its_definition(k: int) -> None:
    net = model()
    x, drawn = draws(net, k)
    q = Independent(Normal(drawn.mean, (0.5 * drawn.log_var).exp()), 1)
    prior = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
    weights = []
    for z in drawn.z:
        px = Independent(Bernoulli(logits=net.decode(z)[:, 0]), 2)
        weights.append((px.log_prob(x) + prior.log_prob(z) - q.log_prob(z)).double().exp())
    expected = torch.stack(weights).mean(0).log().float()
    torch.testing.assert_close(objective(net, drawn, 1.0, 0.0), expected, rtol=1e-4, atol=1e-4)


def test_more_draws_give_a_tighter_bound() -> None:
    net = model()
    _, drawn = draws(net, 4000, rows=3)
    elbo = net.terms(drawn).elbo
    few = torch.stack(
        [
            importance_weighted(drawn._replace(z=drawn.z[i : i + 8], nll=drawn.nll[i : i + 8]))
            for i in range(0, 4000, 8)
        ]
    ).mean(0)
    assert (elbo < few).all()
    assert (few < importance_weighted(drawn)).all()


def test_free_bits_limit_the_kl_of_each_latent() -> None:
    mean = torch.tensor([[0.1, 2.0], [0.2, -2.0]], requires_grad=True)
    drawn = PosteriorSamples(mean, torch.zeros(2, 2), mean[None], torch.zeros(1, 2))
    cost = latent_kl(mean, drawn.log_var)
    rate = kl_with_free_bits(drawn, free_bits=0.5)
    torch.testing.assert_close(rate, 0.5 + cost[:, 1])  # the mean KL of the first latent is below
    rate.sum().backward()
    assert mean.grad is not None
    assert not mean.grad[:, 0].any()
    assert mean.grad[:, 1].all()
    torch.testing.assert_close(kl_with_free_bits(drawn, 0.0), gaussian_kl(mean, drawn.log_var))


def test_autoencoder_has_only_a_distortion() -> None:
    net = model(model="ae")
    x, drawn = draws(net, 1)
    expected = -net.likelihood.nll(x, net.decode(net.encode(x)[0]))
    torch.testing.assert_close(objective(net, drawn, 1.0, 0.0), expected)


def test_draws_belong_to_their_rows() -> None:
    """Row r of draw i explains x[r]: no draw is mixed up with another row's."""
    net = model()
    x, drawn = draws(net, 3)
    for z, nll in zip(drawn.z, drawn.nll, strict=True):
        torch.testing.assert_close(nll, net.likelihood.nll(to_unit(x), net.decode(z)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "the elbo"),
        ({"beta": 4}, "the elbo, its KL times 4"),
        (
            {"kl_warmup_epochs": 10, "free_bits": 0.1},
            "its KL rising in 10 epochs, 0.1 nats of each",
        ),
        ({"kl_cycles": 4}, "its KL rising 4 times"),
        ({"importance_samples": 50}, "the importance-weighted bound of 50 draws"),
    ],
)
def test_log_names_the_objective(settings: dict[str, Any], words: str) -> None:
    assert words in describe_objective(Config(**settings))
