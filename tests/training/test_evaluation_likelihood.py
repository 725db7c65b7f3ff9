"""The importance-weighted NLL against a model whose likelihood is known exactly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from latentd.training.config import Config
from latentd.training.dataset import RowSpec
from latentd.training.errors import RunFailed
from latentd.training.evaluation.likelihood import estimate_likelihood
from latentd.training.likelihoods import LIKELIHOODS
from latentd.training.model import build
from latentd.training.networks import resolve_architecture

SIZE, LATENT, STD = 7, 3, 0.3
ROWS = 40


class LinearGaussian(nn.Module):
    """Probabilistic PCA (Tipping & Bishop, 1999): x = W z + b + STD noise, W's columns orthogonal,
    so that the true posterior is diagonal and log p(x) is known.

    wrong: is added to the posterior's mean and to its standard deviation.
    """

    def __init__(self, wrong: float = 0.0) -> None:
        super().__init__()
        noise = torch.Generator().manual_seed(1)
        columns, _ = torch.linalg.qr(torch.randn(SIZE, LATENT, generator=noise))
        self.w, self.b = columns * torch.tensor([1.0, 0.6, 0.2]), torch.linspace(0, 1, SIZE)
        self.likelihood = LIKELIHOODS["gaussian"](Config(min_std=0.01))
        self.wrong, self.latent_shape, self.output_shape = wrong, (LATENT,), (SIZE,)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        variance = 1 / (1 + self.w.square().sum(0) / STD**2)
        mean = variance * ((x - self.b) @ self.w) / STD**2
        return mean + self.wrong, 2 * (variance.sqrt() + self.wrong).log().expand_as(mean)

    def decode(self, z: Tensor) -> Tensor:
        mean = z @ self.w.T + self.b
        return torch.stack((mean, torch.full_like(mean, math.log(STD))), dim=1)

    def distortion(self, z: Tensor, x: Tensor) -> Tensor:
        return self.likelihood.nll(x, self.decode(z))

    def nll(self, x: Tensor) -> Tensor:
        covariance = self.w @ self.w.T + STD**2 * torch.eye(SIZE)
        exact = MultivariateNormal(self.b.double(), covariance.double())
        return -exact.log_prob(x.double())


def rows() -> Tensor:
    return torch.rand(ROWS, SIZE, generator=torch.Generator().manual_seed(2))


def test_one_draw_is_exact_with_the_true_posterior() -> None:
    model, x = LinearGaussian(), rows()
    found = estimate_likelihood(model, x, samples=1, seed=0)
    torch.testing.assert_close(found.nll, model.nll(x), rtol=1e-4, atol=1e-4)


def test_many_draws_are_nearly_exact_with_a_wrong_posterior() -> None:
    model, x = LinearGaussian(wrong=0.2), rows()
    found = estimate_likelihood(model, x, samples=20_000, seed=0)
    torch.testing.assert_close(found.nll, model.nll(x), rtol=0, atol=0.05)
    assert (found.negative_elbo > model.nll(x) + 0.3).all()
    assert ((found.effective > 100) & (found.effective < 19_000)).all()


def test_elbo_is_the_nll_plus_the_kl_to_the_true_posterior() -> None:
    model, x = LinearGaussian(wrong=0.2), rows()
    q, p = model.encode(x), LinearGaussian().encode(x)
    found = estimate_likelihood(model, x, samples=20_000, seed=0)
    distances = torch.distributions.kl_divergence(
        *(torch.distributions.Normal(mean, (0.5 * log_var).exp()) for mean, log_var in (q, p))
    ).sum(1)
    expected = model.nll(x) + distances
    torch.testing.assert_close(found.negative_elbo, expected, rtol=0, atol=0.1)
    torch.testing.assert_close(found.negative_elbo, found.distortion + found.rate)


def test_more_draws_tighten_the_bound() -> None:
    model, x = LinearGaussian(wrong=0.2), rows()
    means = [
        torch.stack(
            [estimate_likelihood(model, x, samples, seed).nll.mean() for seed in range(20)]
        ).mean()
        for samples in (1, 4, 16, 256)
    ]
    assert means == sorted(means, reverse=True)
    assert means[0] > means[-1] + 0.3
    one = torch.stack(
        [estimate_likelihood(model, x, 1, seed).negative_elbo.mean() for seed in range(20)]
    ).mean()
    torch.testing.assert_close(means[0], one, rtol=0, atol=0.1)  # S = 1 is the ELBO


@pytest.mark.parametrize("at_once", [1, 7, 64, 1000])
def test_result_does_not_depend_on_the_batch_size(at_once: int) -> None:
    model, x = LinearGaussian(wrong=0.2), rows()
    whole, parts = (
        estimate_likelihood(model, x, 50, 3),
        estimate_likelihood(model, x, 50, 3, at_once=at_once),
    )
    for name in ("nll", "distortion", "rate", "effective"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-5)


def test_result_of_a_row_does_not_depend_on_other_rows() -> None:
    model, x = LinearGaussian(wrong=0.2), rows()
    few = estimate_likelihood(model, x[:5], 50, 3)
    torch.testing.assert_close(
        few.nll, estimate_likelihood(model, x, 50, 3).nll[:5], rtol=1e-5, atol=1e-5
    )
    assert not torch.equal(few.nll, estimate_likelihood(model, x[:5], 50, 4).nll)


def test_each_row_draws_its_own_noise() -> None:
    model, x = LinearGaussian(wrong=0.2), rows()[:1].expand(30, SIZE)
    assert len(estimate_likelihood(model, x, 1, 0).nll.unique()) == 30


def test_weights_outside_the_range_of_exp_are_summed() -> None:
    """For log w <= -1e5, exp(log w) is 0 and exp(-log w) is infinite."""
    model, x = LinearGaussian(wrong=0.2), 1e2 + rows()
    found = estimate_likelihood(model, x, 64, 0, at_once=8)
    assert found.nll.isfinite().all()
    assert (found.nll > 1e5).all()


def test_bound_of_a_vae_is_tighter_than_its_elbo() -> None:
    spec = RowSpec((4, 5), "uint8")
    settings = Config(likelihood="bernoulli", hidden_size=8, latent_size=2)
    vae = build(resolve_architecture(settings, spec.shape), spec).eval()
    x = torch.bernoulli(torch.rand(6, 4, 5, generator=torch.Generator().manual_seed(0)))
    found = estimate_likelihood(vae, x, 300, 0)
    terms = [vae(x, torch.Generator().manual_seed(seed)).elbo for seed in range(300)]
    elbo = torch.stack(terms).mean(0).double()
    torch.testing.assert_close(found.negative_elbo, -elbo, rtol=0, atol=0.1)
    assert (found.nll <= found.negative_elbo + 1e-6).all()


def test_non_finite_model_is_reported() -> None:
    model, x = LinearGaussian(), rows()
    x[3, 0] = math.inf
    with pytest.raises(RunFailed, match="not finite on row 3 of those evaluated"):
        estimate_likelihood(model, x, 4, 0)
