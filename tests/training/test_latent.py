"""Active units, collapse, aggregate posterior and Frechet distances against known results."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from latentd.training.evaluation import samples
from latentd.training.evaluation.active_units import measure_units, verdict
from latentd.training.evaluation.aggregate_posterior import (
    measure_aggregate,
    mmd,
    mutual_information,
)
from latentd.training.evaluation.frechet import frechet
from latentd.training.evaluation.linear_probe import linear_probe


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def posterior(used: int, size: int, rows: int = 3000) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and log_var: `used` units differ between rows, the others equal the prior."""
    mean, log_var = normal(rows, size), torch.full((rows, size), math.log(0.1))
    mean[:, :used] *= math.sqrt(0.9)  # with a variance of 0.1 around it, z ~ N(0, 1)
    mean[:, used:] *= 0.05  # Var E[z|x] = 0.0025, below the threshold
    log_var[:, used:] = 0
    return mean, log_var


def test_kl_per_dimension_equals_torch_and_sums_to_the_rate() -> None:
    mean, log_var = normal(50, 6), normal(50, 6, seed=1)
    expected = kl_divergence(Normal(mean, (0.5 * log_var).exp()), Normal(0.0, 1.0))
    found = measure_units(mean, log_var)
    torch.testing.assert_close(found.kl, expected.double().mean(0))
    torch.testing.assert_close(found.kl.sum(), expected.sum(1).double().mean())


def test_units_are_inactive_when_they_equal_the_prior() -> None:
    found = measure_units(*posterior(used=3, size=8))
    assert found.active.tolist() == [True] * 3 + [False] * 5
    assert found.count == 3
    assert not found.collapsed
    assert "3 of 8 units are active" in verdict(found)


def test_collapse_is_reported_with_advice() -> None:
    found = measure_units(*posterior(used=0, size=8))
    assert found.collapsed
    assert verdict(found).startswith("COLLAPSED: none of 8 units is active")
    for flag in ("--beta", "--kl-warmup-epochs", "--free-bits"):
        assert flag in verdict(found)
    assert "COLLAPSED" not in verdict(measure_units(*posterior(used=8, size=8)))


def test_aggregate_of_a_good_posterior_equals_the_prior() -> None:
    mean, log_var = posterior(used=4, size=4)
    found = measure_aggregate(mean, log_var, torch.ones(4, dtype=torch.bool), seed=9)
    assert found.rows == 1000
    assert found.mmd <= found.null_high
    assert found.words == "indistinguishable from N(0, I)"
    assert found.norm_of_mean < 0.15
    assert abs(found.mean_norm - 1) < 0.03
    assert abs(found.active_variance - 1) < 0.05


def test_mmd_threshold_is_over_pairs_of_sets() -> None:
    """No set is in all pairs. Otherwise the percentile would depend on that set."""
    mean, log_var = posterior(used=2, size=2)
    active = torch.ones(2, dtype=torch.bool)
    found = [measure_aggregate(mean, log_var, active, seed) for seed in range(6)]
    for each in found:
        assert abs(each.null_mean) < 0.35 * each.null_high
    high = [each.null_high for each in found]
    assert max(high) < 2.5 * min(high)


@pytest.mark.parametrize(("shift", "scale"), [(0.5, 1.0), (0.0, 3.0), (0.0, 0.5)])
def test_aggregate_that_differs_from_the_prior_is_detected(shift: float, scale: float) -> None:
    mean, log_var = posterior(used=4, size=4)
    found = measure_aggregate(
        scale * mean + shift, log_var + 2 * math.log(scale), torch.ones(4, dtype=torch.bool), 9
    )
    assert found.mmd > 3 * found.null_high
    assert found.words.startswith("not N(0, I): ")
    assert abs(found.norm_of_mean - 2 * shift) < 0.25
    assert abs(found.active_variance - scale**2) < 0.1 * scale**2
    assert found.mean_norm == pytest.approx(scale * math.hypot(1, shift), rel=0.1)


def test_variance_is_of_active_units_only() -> None:
    mean, log_var = posterior(used=2, size=8)
    mean[:, :2] *= 5
    active = torch.arange(8) < 2
    assert measure_aggregate(mean, log_var, active, 9).active_variance > 15
    assert math.isnan(measure_aggregate(mean, log_var, active & False, 9).active_variance)


def test_mmd_is_unbiased() -> None:
    """Its mean over many small sets of one distribution is 0. A biased estimate is above 0."""
    values = torch.tensor(
        [mmd(normal(20, 3, seed=i), normal(20, 3, seed=1000 + i)) for i in range(400)]
    )
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))
    assert (values < 0).any()


def test_mutual_information_of_known_codes() -> None:
    """Sharp codes have log(rows), the maximum. Codes equal to the prior have none. In between it
    is the capacity of a Gaussian channel: log(1 + signal / noise) / 2 per dimension."""
    sharp, noise = normal(400, 5), normal(400, 5, seed=1)
    little = torch.full_like(sharp, -12.0)
    found = mutual_information(sharp + (0.5 * little).exp() * noise, sharp, little)
    assert found == pytest.approx(math.log(400), abs=1e-3)
    nothing = torch.zeros_like(sharp)
    assert mutual_information(noise, nothing, nothing) == pytest.approx(0, abs=1e-5)
    mean, log_var = normal(2000, 2), torch.zeros(2000, 2)
    found = mutual_information(mean + normal(2000, 2, seed=2), mean, log_var)
    assert found == pytest.approx(math.log(2), abs=0.05)


def test_frechet_distance_of_a_set_to_itself_is_zero() -> None:
    rows = normal(500, 10)
    assert frechet(rows, rows) == pytest.approx(0, abs=1e-9)
    assert frechet(rows, rows[torch.randperm(500)]) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_known_gaussians() -> None:
    """The rows have exactly these moments. In shared axes the distance is
    |shift|^2 + sum (sigma_a - sigma_b)^2."""
    rows = normal(200, 3).double()
    rows = rows - rows.mean(0)
    white = rows @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(rows.T))).T
    turn, _ = torch.linalg.qr(normal(3, 3, seed=5).double())
    a = white * torch.tensor([1.0, 2.0, 3.0]) @ turn
    b = white * torch.tensor([2.0, 2.0, 0.5]) @ turn + torch.tensor([1.0, -2.0, 0.0])
    assert frechet(a, b) == pytest.approx(5 + 1 + 0 + 6.25, rel=1e-6)
    assert frechet(b, a) == pytest.approx(5 + 1 + 0 + 6.25, rel=1e-6)


def test_frechet_distance_when_the_axes_differ() -> None:
    """tr (A B)^1/2 is computed by scipy's matrix root of the product."""
    from scipy.linalg import sqrtm

    a, b = normal(300, 4) @ normal(4, 4, seed=1), normal(300, 4, seed=2) @ normal(4, 4, seed=3)
    one, other = (torch.cov(rows.T.double()).numpy() for rows in (a, b))
    shift = float((a.double().mean(0) - b.double().mean(0)).square().sum())
    expected = shift + (one + other - 2 * sqrtm(one @ other).real).trace()
    assert frechet(a, b) == pytest.approx(expected, rel=1e-4)


def test_frechet_distance_of_constant_features_is_finite() -> None:
    rows = normal(50, 6)
    rows[:, 3:] = 0
    assert frechet(rows, rows + 1) == pytest.approx(6, rel=1e-4)


def test_fitted_gaussian_has_the_moments_of_the_codes() -> None:
    codes = normal(4000, 3) @ normal(3, 3, seed=1) + 5
    drawn = samples.fitted(codes, 40_000, seed=0)
    torch.testing.assert_close(drawn.mean(0), codes.mean(0), rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(drawn.T), torch.cov(codes.T), rtol=0.05, atol=0.05)


def test_probe_finds_linear_features_only() -> None:
    y = torch.arange(600) % 3
    told = normal(600, 4)
    told[:, 0] += 8 * y
    found = linear_probe(told[:400], y[:400], told[400:], y[400:])
    assert (found.train_rows, found.test_rows, found.classes) == (400, 200, 3)
    assert found.accuracy > 0.97
    assert linear_probe(normal(400, 4), y[:400], normal(200, 4, seed=1), y[400:]).accuracy < 0.5
