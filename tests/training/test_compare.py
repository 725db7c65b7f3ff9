"""`latentd compare`: its runs, its report, and the input it rejects."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentd.training import checkpoint
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
from latentd.training.comparison.hypothesis import Spread
from latentd.training.comparison.plan import Plan
from latentd.training.comparison.report import HYPOTHESES
from latentd.training.comparison.trained_runs import _finish, prepare
from latentd.training.config import Config
from latentd.training.train import train
from tests.support.runs import SIX_EPOCHS, numbers

Cli = Callable[..., tuple[int, str, str]]


def test_comparison_has_every_run_and_every_claim(compared: Path) -> None:
    assert len(list((compared / "runs").iterdir())) == 2 * (4 + 2)
    vae, ae = (
        checkpoint.load(compared / "runs" / f"{m}-1455-seed1/best.pt") for m in ("vae", "ae")
    )
    assert (vae.config.model, ae.config.model) == ("vae", "ae")
    assert vae.split == ae.split
    same = dataclasses.replace(ae.config, model="vae")
    assert same == vae.config
    claims = numbers(compared)
    assert list(claims) == [hypothesis.title for hypothesis in HYPOTHESES]
    report = (compared / "COMPARISON.md").read_text()
    for hypothesis in HYPOTHESES:
        found = claims[hypothesis.title]
        assert found["expected"] == hypothesis.expectation
        assert found["verdict"] in ("holds", "does not hold")
        assert (
            f"| {hypothesis.title} | {hypothesis.expectation} | {found['words']} | "
            f"**{found['verdict']}** |" in report
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


def test_only_missing_runs_are_trained_again(
    cli: Cli, compared: Path, cache: Path, others: str
) -> None:
    before = (compared / "comparison.json").read_bytes()
    settings = json.loads(before)["settings"]
    kept = compared / "runs" / "vae-1455-seed0" / "last.pt"
    lost = compared / "runs" / "ae-1000-seed1"
    shutil.rmtree(lost)
    stamp = kept.stat().st_mtime_ns
    binary = ("--likelihood", "bernoulli", "--binarization", "dynamic")
    arguments = ("--out", compared, "--seeds", 2, "--ood-data", others, "--cache", cache)
    status, printed, err = cli("compare", *arguments, *SIX_EPOCHS, *binary)
    assert status == 0, err
    assert "run 12 of 12" in err
    assert kept.stat().st_mtime_ns == stamp
    assert (lost / "last.pt").exists()
    assert json.loads((compared / "comparison.json").read_text())["settings"] == settings
    assert (compared / "comparison.json").read_bytes() == before
    assert f"{'written':<15}{compared / 'COMPARISON.md'}" in printed
    status, _, err = cli("compare", *arguments, *SIX_EPOCHS, *binary, "--hidden-size", 17)
    assert status == 2
    assert "holds a run with other settings" in err


def test_measurements_that_need_labels_are_skipped_without_labels(cli: Cli, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (200, 5), np.uint8)
    np.save(tmp_path / "rows.npy", rows)
    out = tmp_path / "out"
    arguments = ("--data", f"npz:{tmp_path / 'rows.npy'}", "--out", out, "--seeds", 1, *SIX_EPOCHS)
    status, printed, err = cli("compare", *arguments)
    assert status == 0, err
    claims = numbers(out)
    skipped = {
        hypothesis.HYPOTHESIS.title
        for hypothesis in (distribution, sampling, interpolation, features)
    }
    assert skipped <= {title for title, found in claims.items() if found["verdict"] == "skipped"}
    for title in skipped:
        assert claims[title]["words"] == ("The data have no labels, and this needs a classifier.")
    assert "`compare --ood-data DATA`" in claims[density.HYPOTHESIS.title]["words"]
    for hypothesis in (overfitting, latent, collapse):
        assert claims[hypothesis.HYPOTHESIS.title]["measured"]
    assert [path.name for path in (out / "results").iterdir()] == ["latent.png"]
    assert "skipped        Features" in printed


def test_images_are_resized_once(tmp_path: Path, rng: np.random.Generator) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(130):
        Image.fromarray(rng.integers(0, 256, (6, 7), np.uint8)).save(folder / f"{i:03}.png")
    np.save(tmp_path / "others.npy", rng.integers(0, 256, (130, 4, 5), np.uint8))
    tiny = Config(data=f"images:{folder}", image_size="4x5", epochs=1, hidden_size=4, latent_size=2)
    stage = prepare(Plan(tiny, 1, tmp_path / "out", f"npz:{tmp_path / 'others.npy'}"))
    assert stage.dataset.spec.shape == (4, 5)


def test_interrupted_run_stays_on_its_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its generators belong to that device, even when another device is added later."""
    config = Config(epochs=2, hidden_size=4, latent_size=2, batch_size=500)
    train(dataclasses.replace(config, epochs=1), tmp_path / "run")
    saved = checkpoint.load(tmp_path / "run" / "last.pt")
    wanted = dataclasses.replace(saved.config, epochs=2)
    checkpoint.save(tmp_path / "run" / "last.pt", dataclasses.replace(saved, config=wanted))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    _finish(tmp_path / "run", config)
    assert len(checkpoint.load(tmp_path / "run" / "last.pt").history) == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--model", "ae"), "--model is set by `compare`"),
        (("--seed", "1"), "--seed is set by `compare`"),
        (("--seeds", "0"), "0: must be at least 1"),
        (("--ood-data", "npz:{vectors}"), "they must match"),
        (("--data", "npz:nowhere.npy"), "nowhere.npy does not exist"),
        (("--out", "{file}"), "cannot be made"),
        (("--binarization", "dynamic"), "which only --likelihood bernoulli describes"),
    ],
)
def test_invalid_comparison_is_rejected_with_a_message(
    cli: Cli, tmp_path: Path, flags: tuple[str, ...], words: str
) -> None:
    vectors, file = tmp_path / "vectors.npy", tmp_path / "file"
    np.save(vectors, np.full((200, 5), 200, np.uint8))
    file.touch()
    given = [flag.format(vectors=vectors, file=file) for flag in flags]
    status, printed, err = cli("compare", "--out", tmp_path / "out", *given)
    assert (status, printed) == (2, "")
    assert words in err
    assert "Traceback" not in err


@pytest.mark.data
@pytest.mark.slow
def test_mnist_confirms_claims_with_a_small_budget(cli: Cli, tmp_path: Path) -> None:
    """Only the claims that hold with a small budget."""
    default = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("LATENTD_DATA", default))
    if not (folder / "mnist").is_dir():
        pytest.skip(f"{folder} holds no mnist; set LATENTD_DATA to the folder that does")
    out = tmp_path / "out"
    sources = ("--data", f"idx:{folder / 'mnist'}", "--ood-data", f"idx:{folder / 'fashion-mnist'}")
    binary = ("--likelihood", "bernoulli", "--binarization", "dynamic")
    flags = ("--architecture", "mlp", "--epochs", 3, "--seeds", 1, "--out", out)
    assert cli("compare", *sources, *binary, *flags)[0] == 0
    claims = numbers(out)
    for hypothesis in (latent, sampling, collapse):
        assert claims[hypothesis.HYPOTHESIS.title]["verdict"] == "holds", (
            hypothesis.HYPOTHESIS.title
        )
