"""p(x|z) against its definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from latentd.training.config import Config
from latentd.training.dataset import RowSpec
from latentd.training.likelihoods.pixels import DiscretizedLogistic, Gaussian
from latentd.training.model import VAE, build
from latentd.training.networks import resolve_architecture

EVERY = torch.arange(256) / 255


def logistic(mean: float, log_scale: float) -> torch.Tensor:
    """-log p of every byte, (256,)."""
    params = torch.tensor([mean, log_scale]).expand(256, 2)[..., None]
    return DiscretizedLogistic().nll(EVERY[:, None], params)


@pytest.mark.parametrize("mean", [-3.0, 0.0, 0.5, 1.0, 1.3])
@pytest.mark.parametrize("log_scale", [-7.0, -4.0, -1.0, 2.0])
def test_byte_probabilities_sum_to_one(mean: float, log_scale: float) -> None:
    nll = logistic(mean, log_scale)
    assert (nll >= 0).all()
    assert math.isclose(float((-nll).double().exp().sum()), 1, rel_tol=1e-4)


def test_byte_has_the_probability_mass_of_its_bin() -> None:
    mean, scale = 0.3, 0.05
    edges = (torch.arange(257).double() - 0.5) / 255
    cdf = ((edges - mean) / scale).sigmoid()
    cdf[0], cdf[-1] = 0, 1
    expected = -cdf.diff().log()
    got = logistic(mean, math.log(scale)).double()
    near = expected < 20  # further out the double-precision difference cancels
    torch.testing.assert_close(got[near], expected[near], rtol=1e-3, atol=1e-4)


def test_nll_and_gradient_are_finite_far_from_a_narrow_logistic() -> None:
    raw = torch.full((2, 2, 1), -50.0, requires_grad=True)
    likelihood = DiscretizedLogistic()
    nll = likelihood.nll(torch.tensor([[0.5], [1.0]]), likelihood.params(raw))
    nll.sum().backward()
    assert nll.isfinite().all()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()


def test_fixed_std_needs_means_only() -> None:
    likelihood = Gaussian(0.2, fixed_std=0.5)
    assert (likelihood.outputs, likelihood.parameters) == (1, ("mean", "log_std"))
    params = likelihood.params(torch.zeros(3, 1, 4))
    torch.testing.assert_close(params[:, 1].exp(), torch.full((3, 4), 0.5))
    nll = likelihood.nll(torch.ones(3, 4), params)
    torch.testing.assert_close(nll, torch.full((3,), 4 * (2 + math.log(0.5 * math.tau**0.5))))


def test_shared_std_is_one_learned_number() -> None:
    spec = RowSpec((8, 8), "float32")
    config = resolve_architecture(Config(architecture="resnet", linear_path="none"), spec.shape)
    vae = build(config, spec)
    assert isinstance(vae, VAE)
    assert vae.log_std is not None
    z = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    params = vae.decode(z)
    assert params[:, 1].unique().exp().item() == pytest.approx(0.2, abs=0.01)
    x = (params[:, 0] + 0.07 * torch.randn(5, 8, 8, generator=torch.Generator())).detach()
    optimizer = torch.optim.Adam([vae.log_std], 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        vae.likelihood.nll(x, vae.decode(z)).sum().backward()
        optimizer.step()
    error = (x - vae.decode(z)[:, 0]).square().mean().sqrt().item()
    assert vae.decode(z)[:, 1].unique().exp().item() == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize(
    ("settings", "std", "least"),
    [
        ({"architecture": "resnet"}, "shared", 0.002),
        ({"architecture": "ladder", "min_std": 0.01}, "shared", 0.01),
        ({"architecture": "resnet", "fixed_std": 0.1}, "pixel", 0.2),
        ({"architecture": "resnet", "std": "pixel"}, "pixel", 0.2),
        ({"architecture": "mlp"}, "pixel", 0.2),
        ({"architecture": "mlp", "std": "shared"}, "shared", 0.002),
    ],
)
def test_which_std_is_learned_follows_the_net(
    settings: dict[str, Any], std: str, least: float
) -> None:
    config = resolve_architecture(Config(**settings), (32, 32))
    assert (config.std, config.least_std) == (std, least)
