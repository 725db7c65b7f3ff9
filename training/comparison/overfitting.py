"""A VAE overfits less than the autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from latentd.training.comparison.claim import AE, MODELS, VAE, Claim, Key, Numbers, Spread
from latentd.training.comparison.stage import Stage
from latentd.training.data import together
from latentd.training.evaluation.subject import Subject

_ROWS: Final = 5000  # of each part, at most


def _measure(stage: Stage, seed: int) -> Numbers:
    numbers: Numbers = {}
    for rows in stage.sizes:
        for model, run in MODELS.items():
            # At the end of the budget: the best checkpoint would have stopped before overfitting.
            subject = stage.open(run, seed, rows, last=True)
            test, train = (
                distortion(subject, subject.observed(part.x[:_ROWS], seed))
                for part in (subject.dataset.test, subject.dataset.train)
            )
            numbers[f"test minus train distortion, nats, {rows:,} rows", model] = test - train
    return numbers


@torch.inference_mode()
def distortion(subject: Subject, observed: Tensor) -> float:
    """-log p(x|z) at z = E[z|x], nats a row."""
    total = 0.0
    for x in torch.split(observed, together(observed.shape[1:], 1024)):
        mean, _ = subject.model.encode(x)
        nll = subject.model.likelihood.nll(x, subject.model.decode(mean))
        total += float(nll.double().sum())
    return total / len(observed)


def _verdict(found: Mapping[Key, Spread]) -> tuple[bool, str]:
    sizes = list(dict.fromkeys(what for what, _ in found))
    fewest, most = sizes[0], sizes[-1]
    (vae, ae), (vae_most, ae_most) = (
        (found[what, VAE].mean, found[what, AE].mean) for what in (fewest, most)
    )
    return vae <= ae / 2, (
        f"On the fewest rows the VAE's gap is {vae:.1f} nats and the AE's {ae:.1f}; on the most, "
        f"{vae_most:.1f} and {ae_most:.1f}."
    )


CLAIM: Final = Claim(
    title="Overfitting",
    says="Noise in the code and the KL regularise: a VAE overfits less.",
    expects="On the fewest rows the VAE's gap is at most half of the AE's; on many, both are "
    "small.",
    measure=_measure,
    verdict=_verdict,
)
