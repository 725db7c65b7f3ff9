"""Claim: a VAE overfits less than the autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

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
from latentd.training.dataset import max_batch_rows
from latentd.training.evaluation.loaded_run import LoadedRun

_ROWS: Final = 5000  # maximum rows of each part


def _measure(runs: TrainedRuns, seed: int) -> Measurements:
    numbers: Measurements = {}
    for rows in runs.sizes:
        for model, run in MODELS.items():
            # The last checkpoint: the best one would come from before the overfitting.
            loaded = runs.open(run, seed, rows, last=True)
            test, train = (
                distortion(loaded, loaded.targets(part.x[:_ROWS], seed))
                for part in (loaded.dataset.test, loaded.dataset.train)
            )
            numbers[f"test minus train distortion, nats, {rows:,} rows", model] = test - train
    return numbers


@torch.inference_mode()
def distortion(loaded: LoadedRun, target: Tensor) -> float:
    """-log p(x|z) at z = E[z|x], in nats per row."""
    total = 0.0
    for x in torch.split(target, max_batch_rows(target.shape[1:], 1024)):
        mean, _ = loaded.model.encode(x)
        nll = loaded.model.likelihood.nll(x, loaded.model.decode(mean))
        total += float(nll.double().sum())
    return total / len(target)


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


HYPOTHESIS: Final = Hypothesis(
    title="Overfitting",
    statement="Noise in the code and the KL regularize: a VAE overfits less.",
    expectation="On the fewest rows the VAE's gap is at most half of the AE's; on many, both are "
    "small.",
    measure=_measure,
    verdict=_verdict,
)
