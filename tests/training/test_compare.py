"""`python -m training compare`: the runs it makes, what it measures, what it says."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from training import checkpoint, data
from training.comparison import (
    collapse,
    density,
    distribution,
    features,
    interpolation,
    latent,
    overfitting,
    sampling,
)
from training.comparison.claim import AE, VAE, Claim, Spread, spread
from training.comparison.plan import Plan, sizes
from training.comparison.report import CLAIMS
from training.config import Config
from training.errors import TrainingError
from training.evaluation.subject import open_run

Cli = Callable[..., tuple[int, str, str]]
TINY = ("--epochs", 6, "--hidden", 16, "--latent-size", 3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classifiers, shared by a module's tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digits upside down and inverted: rows of another kind and the same shape."""
    digits = data.load(Config())
    path = tmp_path_factory.mktemp("others") / "others.npz"
    x = torch.cat((digits.train.x, digits.test.x)).flip(1).numpy()
    np.savez(path, x=255 - x)
    return f"npz:{path}"


def test_sizes_are_those_the_data_permit() -> None:
    assert sizes(54_000) == (1000, 5000, 50_000)
    assert sizes(50_000) == (1000, 5000, 50_000)
    assert sizes(6000) == (1000, 5000, 6000)
    assert sizes(5100) == (1000, 5100)
    assert sizes(1455) == (1000, 1455)
    assert sizes(300) == (300,)
    with pytest.raises(TrainingError, match="--data has 99 training rows, too few"):
        sizes(99)


def test_every_run_has_the_same_net_and_as_many_steps() -> None:
    config = Config(epochs=10, hidden=7, batch_size=50, free_bits=0.1, kl_warm_up=3, patience=2)
    runs = Plan(config, 2, Path("out"), other="idx:other").runs((1000, 4000), values=64)
    names = [folder.name for folder in runs]
    for seed in (0, 1):
        assert {name for name in names if name.endswith(f"seed{seed}")} == {
            *(f"{model}-{rows}-seed{seed}" for model in ("vae", "ae") for rows in (1000, 4000)),
            *(f"{run}-4000-seed{seed}" for run in ("collapsing", "other")),
        }
    for folder, run in runs.items():
        kind, rows, seed = folder.name.split("-")
        assert (run.hidden, run.batch_size, run.patience) == (7, 50, 0)
        assert f"seed{run.seed}" == seed
        assert run.model == ("ae" if kind == "ae" else "vae")
        if kind == "collapsing":
            assert (run.beta, run.free_bits, run.kl_warm_up) == (64, 0, 0)
            continue
        steps = run.epochs * math.ceil(int(rows) / run.batch_size)
        assert steps == 10 * 80
        assert run.validate_every == run.epochs // 10
        assert (run.free_bits, run.kl_warm_up) == ((0, 0) if kind == "ae" else (0.1, 3))
        assert run.data == f"npz:out/data/rows-{'other' if kind == 'other' else rows}.npz"


def test_a_spread_is_of_the_seeds() -> None:
    found = spread([{("a", VAE): 1.0}, {("a", VAE): 3.0}])
    assert found == {("a", VAE): Spread(2.0, math.sqrt(2))}
    assert str(found["a", VAE]) == "2.000 ± 1.414"
    assert spread([{("a", VAE): 1.0}])["a", VAE].sd == 0
    none = spread([{("a", VAE): math.nan}, {("a", VAE): 1.0}])["a", VAE]
    assert math.isnan(none.mean)
    assert str(none) == "none"


def test_auroc_is_the_chance_of_a_strange_row_to_score_higher() -> None:
    known, strange = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.5, 3.0])
    assert density.auroc(known, strange) == pytest.approx(5 / 6)
    assert density.auroc(strange, known) == pytest.approx(1 / 6)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, cache: Path, others: str) -> Path:
    """A finished comparison, its budget too small to show anything."""
    from training.__main__ import main

    out = tmp_path_factory.mktemp("compared") / "out"
    binary = ("--likelihood", "bernoulli", "--binarisation", "dynamic")
    arguments = ("--out", out, "--seeds", 2, "--other", others, "--cache", cache, *TINY, *binary)
    assert main(["compare", *map(str, arguments)]) == 0
    return out


def numbers(out: Path) -> dict[str, Any]:
    """The claims of comparison.json by title."""
    raw = json.loads((out / "comparison.json").read_text())
    return {claim["title"]: claim for claim in raw["claims"]}


def test_a_comparison_has_every_run_and_every_claim(compared: Path) -> None:
    assert len(list((compared / "runs").iterdir())) == 2 * (4 + 2)
    vae, ae = (
        checkpoint.load(compared / "runs" / f"{m}-1455-seed1/best.pt") for m in ("vae", "ae")
    )
    assert (vae.config.model, ae.config.model) == ("vae", "ae")
    assert vae.split == ae.split
    same = dataclasses.replace(ae.config, model="vae")
    assert same == vae.config
    claims = numbers(compared)
    assert list(claims) == [claim.title for claim in CLAIMS]
    report = (compared / "COMPARISON.md").read_text()
    for claim in CLAIMS:
        found = claims[claim.title]
        assert found["expected"] == claim.expects
        assert found["verdict"] in ("holds", "does not hold")
        assert (
            f"| {claim.title} | {claim.expects} | {found['words']} | **{found['verdict']}** |"
            in report
        )
        for line in found["measured"]:
            assert line["what"] in report
            assert str(Spread(line["mean"], line["sd"])) in report
    assert "2 seeds each" in report
    assert "training rows 1,000, 1,455" in report
    assert "`--epochs 6`" in report
    pictures = sorted(path.name for path in (compared / "results").iterdir())
    assert pictures == ["interpolation.png", "latent.png", "one_x_many_z.png", "samples.png"]
    for name in pictures:
        assert f"(results/{name})" in report
        with Image.open(compared / "results" / name) as picture:
            assert np.asarray(picture).std() > 10, name


def measured(out: Path, claim: Claim, what: str, model: str) -> float:
    lines = numbers(out)[claim.title]["measured"]
    return next(line["mean"] for line in lines if what in line["what"] and line["of"] == model)


def test_what_is_measured_is_what_it_says(compared: Path) -> None:
    """Facts that hold whatever the budget."""
    assert measured(compared, distribution.CLAIM, "standard deviation", AE) == 0
    assert measured(compared, distribution.CLAIM, "class", AE) == 1
    assert measured(compared, distribution.CLAIM, "standard deviation", VAE) > 0
    real = measured(compared, sampling.CLAIM, "real training rows", "data")
    for model in (VAE, AE):
        assert measured(compared, sampling.CLAIM, "N(0, I)", model) > real
    sure = measured(compared, interpolation.CLAIM, "confidence", "test rows")
    assert sure > measured(compared, interpolation.CLAIM, "confidence", "pixel mixing")
    assert 0.2 < measured(compared, features.CLAIM, "linear probe", AE) <= 1
    assert 0 <= measured(compared, density.CLAIM, "--other's rows to be found", VAE) <= 1
    vae, ae = (measured(compared, latent.CLAIM, "mean norm", model) for model in (VAE, AE))
    assert abs(vae - 1) < abs(ae - 1)


def test_the_gap_is_that_of_the_last_weights(compared: Path) -> None:
    gaps = []
    for seed in (0, 1):
        subject = open_run(compared / "runs" / f"vae-1000-seed{seed}" / "last.pt")
        parts = (subject.dataset.test.x, subject.dataset.train.x)
        test, train = (overfitting.distortion(subject, subject.observed(x, seed)) for x in parts)
        gaps.append(test - train)
        x = subject.observed(parts[0], seed)
        with torch.no_grad():
            nll = subject.model.likelihood.nll(x, subject.model.decode(subject.encode(x)[0]))
        assert test == pytest.approx(float(nll.mean()), rel=1e-5)
    found = measured(compared, overfitting.CLAIM, "1,000 rows", VAE)
    assert found == pytest.approx(sum(gaps) / 2, abs=1e-6)


def test_finished_runs_are_not_trained_again_and_lost_ones_are(
    cli: Cli, compared: Path, cache: Path, others: str
) -> None:
    before = (compared / "comparison.json").read_bytes()
    settings = json.loads(before)["settings"]
    kept = compared / "runs" / "vae-1455-seed0" / "last.pt"
    lost = compared / "runs" / "ae-1000-seed1"
    shutil.rmtree(lost)
    stamp = kept.stat().st_mtime_ns
    binary = ("--likelihood", "bernoulli", "--binarisation", "dynamic")
    arguments = ("--out", compared, "--seeds", 2, "--other", others, "--cache", cache)
    status, printed, err = cli("compare", *arguments, *TINY, *binary)
    assert status == 0, err
    assert "run 12 of 12" in err
    assert kept.stat().st_mtime_ns == stamp
    assert (lost / "last.pt").exists()
    assert json.loads((compared / "comparison.json").read_text())["settings"] == settings
    assert (compared / "comparison.json").read_bytes() == before
    assert f"{'written':<15}{compared / 'COMPARISON.md'}" in printed
    status, _, err = cli("compare", *arguments, *TINY, *binary, "--hidden", 17)
    assert status == 2
    assert "holds a run of other settings" in err


def test_rows_without_labels_skip_what_labels_judge(cli: Cli, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (200, 5), np.uint8)
    np.save(tmp_path / "rows.npy", rows)
    out = tmp_path / "out"
    arguments = ("--data", f"npz:{tmp_path / 'rows.npy'}", "--out", out, "--seeds", 1, *TINY)
    status, printed, err = cli("compare", *arguments)
    assert status == 0, err
    claims = numbers(out)
    skipped = {claim.CLAIM.title for claim in (distribution, sampling, interpolation, features)}
    assert skipped <= {title for title, found in claims.items() if found["verdict"] == "skipped"}
    for title in skipped:
        assert claims[title]["words"] == (
            "The data have no labels, and this is judged by a classifier."
        )
    assert "`compare --other DATA`" in claims[density.CLAIM.title]["words"]
    for claim in (overfitting, latent, collapse):
        assert claims[claim.CLAIM.title]["measured"]
    assert [path.name for path in (out / "results").iterdir()] == ["latent.png"]
    assert "skipped        Features" in printed


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--model", "ae"), "--model is compare's own to choose"),
        (("--seed", "1"), "--seed is compare's own to choose"),
        (("--seeds", "0"), "0: must be at least 1"),
        (("--other", "npz:{vectors}"), "make them the same"),
        (("--data", "npz:nowhere.npy"), "nowhere.npy does not exist"),
        (("--out", "{file}"), "cannot be made"),
        (("--binarisation", "dynamic"), "which only --likelihood bernoulli describes"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(
    cli: Cli, tmp_path: Path, flags: tuple[str, ...], words: str
) -> None:
    vectors, file = tmp_path / "vectors.npy", tmp_path / "file"
    np.save(vectors, np.zeros((200, 5), np.uint8))
    file.touch()
    given = [flag.format(vectors=vectors, file=file) for flag in flags]
    status, printed, err = cli("compare", "--out", tmp_path / "out", *given)
    assert (status, printed) == (2, "")
    assert words in err
    assert "Traceback" not in err


def judged(claim: Claim, out: Path, **values: float) -> tuple[bool, str]:
    """The claim's verdict on its own numbers with some of them replaced: keys are the model and
    words of what was measured."""
    found = {
        (line["what"], line["of"]): Spread(line["mean"], 0)
        for line in numbers(out)[claim.title]["measured"]
    }
    for key, value in values.items():
        model, _, words = key.partition("_")
        chosen = [
            k for k in found if k[1].lower().startswith(model) and words.replace("_", " ") in k[0]
        ]
        assert chosen, key
        found |= dict.fromkeys(chosen, Spread(value, 0))
    return claim.verdict(found)


def test_verdicts_follow_the_numbers(compared: Path) -> None:
    for claim, holds, fails in (
        (distribution.CLAIM, {"vae_class": 0.96}, {"vae_class": 0.94}),
        (
            overfitting.CLAIM,
            {"vae_distortion": 4.9, "ae_distortion": 10},
            {"vae_distortion": 5.1, "ae_distortion": 10},
        ),
        (
            latent.CLAIM,
            {"vae_mean_norm": 1.05, "vae_MMD": 3, "ae_MMD": 20},
            {"vae_mean_norm": 1.2, "vae_MMD": 3, "ae_MMD": 20},
        ),
        (sampling.CLAIM, {"vae_from_N": 5, "ae_from_N": 6}, {"vae_from_N": 7, "ae_from_N": 6}),
        (features.CLAIM, {"vae_linear": 0.96}, {"vae_linear": 0.94}),
        (
            collapse.CLAIM,
            {"reconstruction_COLLAPSED": 1, "summed_COLLAPSED": 0},
            {"reconstruction_COLLAPSED": 1, "summed_COLLAPSED": 0.5},
        ),
        (
            density.CLAIM,
            {"vae_--other's": 0.95, "vae_--data's": 0.95},
            {"vae_--other's": 0.95, "vae_--data's": 0.4},
        ),
        (
            interpolation.CLAIM,
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
        assert judged(claim, compared, **holds)[0] is True, claim.title
        assert judged(claim, compared, **fails)[0] is False, claim.title


def test_where_the_autoencoder_wins_it_is_said(compared: Path) -> None:
    words = judged(sampling.CLAIM, compared, vae_from_N=5, ae_fitted=4)[1]
    assert "AE with a fitted Gaussian, which is no longer a plain AE, WINS: 4.0" in words
    assert "WIN" not in judged(sampling.CLAIM, compared, vae_from_N=5, ae_fitted=6)[1]
    assert "AE's WIN" in judged(features.CLAIM, compared, vae_linear=0.96, ae_linear=0.97)[1]
    assert "FAILS, as it often does" in judged(density.CLAIM, compared, **{"vae_--data's": 0.4})[1]


@pytest.mark.data
@pytest.mark.slow
def test_mnist_shows_what_a_vae_is_for(cli: Cli, tmp_path: Path) -> None:
    """The claims that a small budget is enough for."""
    default = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("LATENTD_DATA", default))
    if not (folder / "mnist").is_dir():
        pytest.skip(f"{folder} holds no mnist; set LATENTD_DATA to the folder that does")
    out = tmp_path / "out"
    sources = ("--data", f"idx:{folder / 'mnist'}", "--other", f"idx:{folder / 'fashion-mnist'}")
    binary = ("--likelihood", "bernoulli", "--binarisation", "dynamic")
    flags = ("--net", "mlp", "--epochs", 3, "--seeds", 1, "--out", out)
    assert cli("compare", *sources, *binary, *flags)[0] == 0
    claims = numbers(out)
    for claim in (latent, sampling, collapse):
        assert claims[claim.CLAIM.title]["verdict"] == "holds", claim.CLAIM.title
