"""The KL and activity of each latent dimension, and whether the posterior has collapsed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import Tensor

from latentd.training.model import latent_kl

ACTIVE: Final = 0.01
"""A unit is active if Var_x E[z|x] exceeds this. Burda et al., 2016, arXiv:1509.00519, sec. 5."""

REMEDY: Final = (
    "--beta 1 or less if it is above, --kl-warmup-epochs over a third of the epochs, "
    "--free-bits 0.1; then check `train_rate` in log.jsonl from the first epoch on"
)


TEXT_REMEDY: Final = (
    "--token-dropout 0.3, --free-bits 0.2, --kl-warmup-epochs over a third of the epochs, or "
    "--encoder-from a run of --model ae"
)
_LEAST_NATS: Final = 0.5  # of KL and of I(x; z): a decoder of text with less ignores z
_LEAST_DISTINCT: Final = 0.1  # of the greedy decodes of the prior


@dataclass(frozen=True)
class LatentUnits:
    """Measurements of each latent dimension: (latent_size,) each."""

    kl: Tensor  # nats, averaged over rows
    variance: Tensor  # variance of E[z|x] over rows

    @property
    def active(self) -> Tensor:
        """Which units are active: bool (latent_size,)."""
        return self.variance > ACTIVE

    @property
    def count(self) -> int:
        """The number of active units."""
        return int(self.active.sum())

    @property
    def collapsed(self) -> bool:
        """Whether no unit is active, so that the decoder must ignore z."""
        return self.count == 0


def measure_units(mean: Tensor, log_var: Tensor) -> LatentUnits:
    """mean, log_var: (rows, latent_size), two rows or more."""
    return LatentUnits(latent_kl(mean, log_var).double().mean(0), mean.double().var(0))


def text_collapse(units: LatentUnits, information: float, distinct: float) -> str | None:
    """Why a model of text has collapsed, as a sentence; None: it has not. A few units may be active
    while all decodes are alike.

    information: I(x; z) in nats. distinct: the share of greedy decodes of the prior that differ.
    """
    rate = float(units.kl.sum())
    if units.count and min(rate, information) >= _LEAST_NATS and distinct >= _LEAST_DISTINCT:
        return None
    return (
        f"COLLAPSED: the rate is {rate:.2f} nats, I(x; z) {max(information, 0):.2f}; {units.count} "
        f"of {len(units.kl)} units are active, and {distinct:.0%} of greedy decodes of the prior "
        f"are distinct. The decoder ignores z, however good the NLL is. Try: {TEXT_REMEDY}."
    )


def verdict(units: LatentUnits) -> str:
    """A sentence that says whether the posterior has collapsed and what to try."""
    size, rate = len(units.kl), float(units.kl.sum())
    if units.collapsed:
        return (
            f"COLLAPSED: none of {size} units is active and the rate is {rate:.2f} nats; q(z|x) is "
            f"the prior and samples do not depend on z. Try: {REMEDY}."
        )
    if units.count < size:
        return (
            f"not collapsed: {units.count} of {size} units are active. The others equal the "
            "prior, as is usual for latents that a VAE does not need; that is harmless."
        )
    return f"not collapsed: all {size} units are active. A larger --latent-size may help."
