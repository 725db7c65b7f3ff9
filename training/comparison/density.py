"""A VAE estimates densities: rows of another kind should be less likely. Often they are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from latentd.training.comparison.claim import AE, VAE, Claim, Key, Numbers, Skipped, Spread
from latentd.training.comparison.stage import Stage
from latentd.training.evaluation import samples
from latentd.training.evaluation.bound import bound
from latentd.training.evaluation.subject import Subject
from latentd.training.model import unit

_ROWS: Final = 500  # of each data set
_DRAWS: Final = 50
_FORTH: Final = "AUROC, trained on --data, --other's rows to be found"
_BACK: Final = "AUROC, trained on --other, --data's rows to be found"


def _measure(stage: Stage, seed: int) -> Numbers:
    if stage.other is None:
        raise Skipped(
            "No second data set was given. To measure it: `compare --other DATA`, rows of the "
            "same shape, such as Fashion-MNIST beside MNIST."
        )
    ours, others = stage.dataset.test.x[:_ROWS], stage.other.test.x[:_ROWS]
    vae, ae, back = (stage.open(run, seed) for run in ("vae", "ae", "other"))
    if vae.meaning().of == "nothing":
        raise Skipped(f"There is no likelihood: {vae.meaning().words}.")
    return {
        (_FORTH, VAE): auroc(_nll(vae, ours, seed), _nll(vae, others, seed)),
        (_FORTH, AE): auroc(_error(ae, ours, seed), _error(ae, others, seed)),
        (_BACK, VAE): auroc(_nll(back, others, seed), _nll(back, ours, seed)),
    }


def auroc(known: Tensor, strange: Tensor) -> float:
    """The chance that a strange row scores higher than a known one: 1 is perfect, 0.5 a guess."""
    from sklearn.metrics import roc_auc_score

    truth = torch.cat((torch.zeros(len(known)), torch.ones(len(strange))))
    return float(roc_auc_score(truth.numpy(), torch.cat((known, strange)).numpy()))


def _nll(subject: Subject, x: Tensor, seed: int) -> Tensor:
    return bound(subject.model, subject.observed(x, seed), _DRAWS, seed).nll


def _error(subject: Subject, x: Tensor, seed: int) -> Tensor:
    """An autoencoder has no likelihood; its squared error is what it is used with instead."""
    observed = subject.observed(x, seed)
    mean, _ = subject.encode(observed)
    again = unit(samples.decode(subject.model, mean))
    return (again - observed.cpu()).square().flatten(1).sum(1)


def _verdict(found: Mapping[Key, Spread]) -> tuple[bool, str]:
    forth, back, error = found[_FORTH, VAE].mean, found[_BACK, VAE].mean, found[_FORTH, AE].mean
    reverse = "works too" if back >= 0.9 else "FAILS, as it often does"
    return forth >= 0.9 and back >= 0.9, (
        f"By its NLL the VAE tells the other data set apart with AUROC {forth:.3f} (AE, by its "
        f"squared error, {error:.3f}); the reverse {reverse}: {back:.3f}."
    )


CLAIM: Final = Claim(
    title="Density estimation",
    says="A VAE says how likely a row is, so rows of another kind can be found by their NLL.",
    expects="Trained on the simpler data set, AUROC above 0.9; the reverse often fails, since "
    "simple rows are likely under models of complex ones. The AE's error may do as well.",
    measure=_measure,
    verdict=_verdict,
)
