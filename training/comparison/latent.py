"""Claim: a VAE's latent space is N(0, I), without holes; an autoencoder's has no set form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from latentd.training.comparison.hypothesis import (
    AE,
    MODELS,
    VAE,
    Hypothesis,
    Key,
    Measurements,
    Spread,
)
from latentd.training.comparison.trained_runs import TrainedRuns
from latentd.training.evaluation.active_units import measure_units
from latentd.training.evaluation.aggregate_posterior import measure_aggregate

_CENTER: Final = "norm of the mean of z; 0 for N(0, I)"
_NORM: Final = "mean norm of z, times that of N(0, I)"
_VARIANCE: Final = "variance of active dimensions; 1 for N(0, I)"
_MMD: Final = "MMD^2 to N(0, I), times what chance allows"


def _measure(runs: TrainedRuns, seed: int) -> Measurements:
    numbers: Measurements = {}
    for model, run in MODELS.items():
        loaded = runs.open(run, seed)
        mean, log_var = loaded.encode(loaded.targets(runs.dataset.test.x, seed))
        active = measure_units(mean, log_var).active
        found = measure_aggregate(mean, log_var, active, seed)
        numbers[_CENTER, model] = found.norm_of_mean
        numbers[_NORM, model] = found.mean_norm
        numbers[_VARIANCE, model] = found.active_variance
        numbers[_MMD, model] = max(0.0, found.mmd / found.null_high)
    return numbers


def _verdict(found: Mapping[Key, Spread]) -> tuple[bool, str]:
    vae, ae = found[_MMD, VAE].mean, found[_MMD, AE].mean
    near = abs(found[_NORM, VAE].mean - 1) < 0.1
    distance = (
        "indistinguishable from it"
        if vae <= 1
        else f"but distinguishable from it ({vae:.1f} times)"
    )
    return near and vae < ae / 5, (
        f"The VAE's aggregate posterior is near N(0, I), {distance}; the AE's is {ae:,.0f} times "
        "what chance allows away."
        if near
        else f"The VAE's |z| is {found[_NORM, VAE].mean:.2f} times that of N(0, I)."
    )


HYPOTHESIS: Final = Hypothesis(
    title="A latent space near N(0, I)",
    statement="The KL keeps the codes near N(0, I), so the space is continuous and can be sampled.",
    expectation="The VAE's norm is within 10% of N(0, I)'s, and its MMD is at most a fifth of the "
    "AE's. A test this sharp may still tell it from N(0, I).",
    measure=_measure,
    verdict=_verdict,
)
