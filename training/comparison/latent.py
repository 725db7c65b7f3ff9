"""A VAE's latent space is N(0, I), and so without holes; an autoencoder's is where it fell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from latentd.training.comparison.claim import AE, MODELS, VAE, Claim, Key, Numbers, Spread
from latentd.training.comparison.stage import Stage
from latentd.training.evaluation.aggregate import aggregate
from latentd.training.evaluation.units import units

_CENTRE: Final = "norm of the mean of z; 0 for N(0, I)"
_NORM: Final = "mean norm of z, times that of N(0, I)"
_VARIANCE: Final = "variance of active dimensions; 1 for N(0, I)"
_MMD: Final = "MMD^2 to N(0, I), times what chance allows"


def _measure(stage: Stage, seed: int) -> Numbers:
    numbers: Numbers = {}
    for model, run in MODELS.items():
        subject = stage.open(run, seed)
        mean, log_var = subject.encode(subject.observed(stage.dataset.test.x, seed))
        active = units(mean, log_var).active
        found = aggregate(mean, log_var, active, seed)
        numbers[_CENTRE, model] = found.norm_of_mean
        numbers[_NORM, model] = found.mean_norm
        numbers[_VARIANCE, model] = found.active_variance
        numbers[_MMD, model] = max(0.0, found.mmd / found.null_high)
    return numbers


def _verdict(found: Mapping[Key, Spread]) -> tuple[bool, str]:
    vae, ae = found[_MMD, VAE].mean, found[_MMD, AE].mean
    near = abs(found[_NORM, VAE].mean - 1) < 0.1
    told = "not told apart from it" if vae <= 1 else f"yet told apart from it ({vae:.1f} times)"
    return near and vae < ae / 5, (
        f"The VAE's aggregate posterior is near N(0, I), {told}; the AE's is {ae:,.0f} times what "
        "chance allows away."
        if near
        else f"The VAE's |z| is {found[_NORM, VAE].mean:.2f} times that of N(0, I)."
    )


CLAIM: Final = Claim(
    title="A latent space near N(0, I)",
    says="The KL keeps the codes near N(0, I), so the space is continuous and can be drawn from.",
    expects="The VAE's norm is within 10% of N(0, I)'s, and its MMD at most a fifth of the AE's; a "
    "test this sharp may still tell it from N(0, I).",
    measure=_measure,
    verdict=_verdict,
)
