"""Claim: a VAE estimates densities, so rows of another kind are less likely. Often they are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from latentd.training.comparison.hypothesis import (
    AE,
    VAE,
    Hypothesis,
    Key,
    Measurements,
    Skipped,
    Spread,
)
from latentd.training.comparison.trained_runs import TrainedRuns
from latentd.training.evaluation import samples
from latentd.training.evaluation.likelihood import estimate_likelihood
from latentd.training.evaluation.loaded_run import LoadedRun
from latentd.training.model import to_unit

_ROWS: Final = 500  # rows of each data set
_DRAWS: Final = 50
_FORTH: Final = "AUROC, trained on --data, --ood-data's rows to be found"
_BACK: Final = "AUROC, trained on --ood-data, --data's rows to be found"


def _measure(runs: TrainedRuns, seed: int) -> Measurements:
    if runs.ood is None:
        raise Skipped(
            "No second data set was given. To measure it: `compare --ood-data DATA`, rows of the "
            "same shape, such as Fashion-MNIST for MNIST."
        )
    ours, ood_rows = runs.dataset.test.x[:_ROWS], runs.ood.test.x[:_ROWS]
    vae, ae, back = (runs.open(run, seed) for run in ("vae", "ae", "ood"))
    if vae.meaning().kind == "nothing":
        raise Skipped(f"There is no likelihood: {vae.meaning().description}.")
    return {
        (_FORTH, VAE): auroc(_nll(vae, ours, seed), _nll(vae, ood_rows, seed)),
        (_FORTH, AE): auroc(_error(ae, ours, seed), _error(ae, ood_rows, seed)),
        (_BACK, VAE): auroc(_nll(back, ood_rows, seed), _nll(back, ours, seed)),
    }


def auroc(known: Tensor, strange: Tensor) -> float:
    """The chance that a strange row scores above a known one: 1 is perfect, 0.5 is a guess."""
    from sklearn.metrics import roc_auc_score

    truth = torch.cat((torch.zeros(len(known)), torch.ones(len(strange))))
    return float(roc_auc_score(truth.numpy(), torch.cat((known, strange)).numpy()))


def _nll(loaded: LoadedRun, x: Tensor, seed: int) -> Tensor:
    return estimate_likelihood(loaded.model, loaded.targets(x, seed), _DRAWS, seed).nll


def _error(loaded: LoadedRun, x: Tensor, seed: int) -> Tensor:
    """The squared error of an autoencoder. It replaces the likelihood that autoencoders lack."""
    target = loaded.targets(x, seed)
    mean, _ = loaded.encode(target)
    again = to_unit(samples.decode(loaded.model, mean))
    return (again - target.cpu()).square().flatten(1).sum(1)


def _verdict(found: Mapping[Key, Spread]) -> tuple[bool, str]:
    forth, back, error = found[_FORTH, VAE].mean, found[_BACK, VAE].mean, found[_FORTH, AE].mean
    reverse = "works too" if back >= 0.9 else "FAILS, as it often does"
    return forth >= 0.9 and back >= 0.9, (
        f"By its NLL the VAE tells the other data set apart with AUROC {forth:.3f} (AE, by its "
        f"squared error, {error:.3f}); the reverse {reverse}: {back:.3f}."
    )


HYPOTHESIS: Final = Hypothesis(
    title="Density estimation",
    statement="A VAE says how likely a row is, so rows of another kind can be found by their NLL.",
    expectation="Trained on the simpler data set, AUROC above 0.9; the reverse often fails, since "
    "simple rows are likely under models of complex ones. The AE's error may do equally well.",
    measure=_measure,
    verdict=_verdict,
)
