"""Each claim of a comparison measures what it states, and its verdict follows the numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentd.training.comparison import (
    collapse,
    density,
    distribution,
    features,
    interpolation,
    latent,
    overfitting,
    sampling,
)
from latentd.training.comparison.hypothesis import AE, VAE, Hypothesis, Spread
from latentd.training.evaluation.loaded_run import open_run
from tests.support.runs import numbers


def measured(out: Path, hypothesis: Hypothesis, what: str, model: str) -> float:
    lines = numbers(out)[hypothesis.title]["measured"]
    return next(line["mean"] for line in lines if what in line["what"] and line["of"] == model)


def test_measurements_have_known_properties(compared: Path) -> None:
    """These facts hold with any budget."""
    assert measured(compared, distribution.HYPOTHESIS, "standard deviation", AE) == 0
    assert measured(compared, distribution.HYPOTHESIS, "class", AE) == 1
    assert measured(compared, distribution.HYPOTHESIS, "standard deviation", VAE) > 0
    real = measured(compared, sampling.HYPOTHESIS, "real training rows", "data")
    for model in (VAE, AE):
        assert measured(compared, sampling.HYPOTHESIS, "N(0, I)", model) > real
    sure = measured(compared, interpolation.HYPOTHESIS, "confidence", "test rows")
    assert sure > measured(compared, interpolation.HYPOTHESIS, "confidence", "pixel mixing")
    assert 0.2 < measured(compared, features.HYPOTHESIS, "linear probe", AE) <= 1
    assert 0 <= measured(compared, density.HYPOTHESIS, "--ood-data's rows to be found", VAE) <= 1
    vae, ae = (measured(compared, latent.HYPOTHESIS, "mean norm", model) for model in (VAE, AE))
    assert abs(vae - 1) < abs(ae - 1)


def test_overfitting_gap_is_of_the_last_weights(compared: Path) -> None:
    gaps = []
    for seed in (0, 1):
        loaded = open_run(compared / "runs" / f"vae-1000-seed{seed}" / "last.pt")
        parts = (loaded.dataset.test.x, loaded.dataset.train.x)
        test, train = (overfitting.distortion(loaded, loaded.targets(x, seed)) for x in parts)
        gaps.append(test - train)
        x = loaded.targets(parts[0], seed)
        with torch.no_grad():
            nll = loaded.model.likelihood.nll(x, loaded.model.decode(loaded.encode(x)[0]))
        assert test == pytest.approx(float(nll.mean()), rel=1e-5)
    found = measured(compared, overfitting.HYPOTHESIS, "1,000 rows", VAE)
    assert found == pytest.approx(sum(gaps) / 2, abs=1e-6)


def judged(hypothesis: Hypothesis, out: Path, **values: float) -> tuple[bool, str]:
    """The claim's verdict after some of its numbers are replaced. A key is the model and words
    from the name of the measurement."""
    found = {
        (line["what"], line["of"]): Spread(line["mean"], 0)
        for line in numbers(out)[hypothesis.title]["measured"]
    }
    for key, value in values.items():
        model, _, words = key.partition("_")
        chosen = [
            k for k in found if k[1].lower().startswith(model) and words.replace("_", " ") in k[0]
        ]
        assert chosen, key
        found |= dict.fromkeys(chosen, Spread(value, 0))
    return hypothesis.verdict(found)


def test_verdicts_follow_the_numbers(compared: Path) -> None:
    for hypothesis, in_flight, fails in (
        (distribution.HYPOTHESIS, {"vae_class": 0.96}, {"vae_class": 0.94}),
        (
            overfitting.HYPOTHESIS,
            {"vae_distortion": 4.9, "ae_distortion": 10},
            {"vae_distortion": 5.1, "ae_distortion": 10},
        ),
        (
            latent.HYPOTHESIS,
            {"vae_mean_norm": 1.05, "vae_MMD": 3, "ae_MMD": 20},
            {"vae_mean_norm": 1.2, "vae_MMD": 3, "ae_MMD": 20},
        ),
        (sampling.HYPOTHESIS, {"vae_from_N": 5, "ae_from_N": 6}, {"vae_from_N": 7, "ae_from_N": 6}),
        (features.HYPOTHESIS, {"vae_linear": 0.96}, {"vae_linear": 0.94}),
        (
            collapse.HYPOTHESIS,
            {"reconstruction_COLLAPSED": 1, "summed_COLLAPSED": 0},
            {"reconstruction_COLLAPSED": 1, "summed_COLLAPSED": 0.5},
        ),
        (
            density.HYPOTHESIS,
            {"vae_--ood-data's": 0.95, "vae_--data's": 0.95},
            {"vae_--ood-data's": 0.95, "vae_--data's": 0.4},
        ),
        (
            interpolation.HYPOTHESIS,
            {
                **{"vae_confidence": 0.9, "ae_confidence": 0.8, "pixel_confidence": 0.7},
                **{"vae_distance": 0.1, "ae_distance": 0.2, "pixel_distance": 0.2},
            },
            {
                **{"vae_confidence": 0.9, "ae_confidence": 0.8, "pixel_confidence": 0.95},
                **{"vae_distance": 0.1, "ae_distance": 0.2, "pixel_distance": 0.2},
            },
        ),
    ):
        assert judged(hypothesis, compared, **in_flight)[0] is True, hypothesis.title
        assert judged(hypothesis, compared, **fails)[0] is False, hypothesis.title


def test_report_names_the_claims_that_the_autoencoder_wins(compared: Path) -> None:
    words = judged(sampling.HYPOTHESIS, compared, vae_from_N=5, ae_fitted=4)[1]
    assert "AE with a fitted Gaussian, which is no longer a plain AE, WINS: 4.0" in words
    assert "WIN" not in judged(sampling.HYPOTHESIS, compared, vae_from_N=5, ae_fitted=6)[1]
    assert "AE's WIN" in judged(features.HYPOTHESIS, compared, vae_linear=0.96, ae_linear=0.97)[1]
    assert (
        "FAILS, as it often does"
        in judged(density.HYPOTHESIS, compared, **{"vae_--data's": 0.4})[1]
    )
