"""The runs that a comparison plans, and the arithmetic of its results."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from latentd.training.comparison import (
    density,
)
from latentd.training.comparison.hypothesis import VAE, Spread, spread
from latentd.training.comparison.plan import Plan, sizes
from latentd.training.config import Config
from latentd.training.errors import TrainingError


def test_training_sizes_fit_the_data() -> None:
    assert sizes(54_000) == (1000, 5000, 50_000)
    assert sizes(50_000) == (1000, 5000, 50_000)
    assert sizes(6000) == (1000, 5000, 6000)
    assert sizes(5100) == (1000, 5100)
    assert sizes(1455) == (1000, 1455)
    assert sizes(300) == (300,)
    with pytest.raises(TrainingError, match="--data has 99 training rows, too few"):
        sizes(99)


def test_all_runs_have_the_same_net_and_number_of_steps() -> None:
    config = Config(
        epochs=10, hidden_size=7, batch_size=50, free_bits=0.1, kl_warmup_epochs=3, patience=2
    )
    runs = Plan(config, 2, Path("out"), ood_data="idx:ood").runs((1000, 4000), values=64)
    names = [folder.name for folder in runs]
    for seed in (0, 1):
        assert {name for name in names if name.endswith(f"seed{seed}")} == {
            *(f"{model}-{rows}-seed{seed}" for model in ("vae", "ae") for rows in (1000, 4000)),
            *(f"{run}-4000-seed{seed}" for run in ("collapsing", "ood")),
        }
    for folder, run in runs.items():
        kind, rows, seed = folder.name.split("-")
        assert (run.hidden_size, run.batch_size, run.patience) == (7, 50, 0)
        assert f"seed{run.seed}" == seed
        assert run.model == ("ae" if kind == "ae" else "vae")
        if kind == "collapsing":
            assert (run.beta, run.free_bits, run.kl_warmup_epochs) == (64, 0, 0)
            continue
        steps = run.epochs * math.ceil(int(rows) / run.batch_size)
        assert steps == 10 * 80
        assert run.validate_every == run.epochs // 10
        assert (run.free_bits, run.kl_warmup_epochs) == ((0, 0) if kind == "ae" else (0.1, 3))
        assert run.data == f"npz:out/data/rows-{'ood' if kind == 'ood' else rows}.npz"


def test_spread_is_over_the_seeds() -> None:
    found = spread([{("a", VAE): 1.0}, {("a", VAE): 3.0}])
    assert found == {("a", VAE): Spread(2.0, math.sqrt(2))}
    assert str(found["a", VAE]) == "2.000 ± 1.414"
    assert spread([{("a", VAE): 1.0}])["a", VAE].sd == 0
    none = spread([{("a", VAE): math.nan}, {("a", VAE): 1.0}])["a", VAE]
    assert math.isnan(none.mean)
    assert str(none) == "none"


def test_auroc_is_the_probability_that_an_ood_row_scores_higher() -> None:
    known, strange = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.5, 3.0])
    assert density.auroc(known, strange) == pytest.approx(5 / 6)
    assert density.auroc(strange, known) == pytest.approx(1 / 6)
