"""`latentd evaluate` on real runs: its output for each kind of model."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from latentd.training import checkpoint, data
from latentd.training.config import Config
from latentd.training.dataset import Rows, RowSpec
from latentd.training.evaluation.classifier import Classifier, load_classifier
from latentd.training.evaluation.loaded_run import open_run
from latentd.training.evaluation.results_file import saved_evaluation, weights_digest
from latentd.training.trainer import evaluate as elbo_of

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def train(cli: Cli, tmp_path: Path) -> Callable[..., Path]:
    def run(*flags: object, epochs: int = 1) -> Path:
        out = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        tiny = ("--epochs", epochs, "--hidden-size", 16, "--latent-size", 3)
        status, _, err = cli("train", "--out", out, *tiny, *flags)
        assert status == 0, err
        return out

    return run


@pytest.fixture
def evaluate(cli: Cli, cache: Path) -> Callable[..., tuple[dict[str, Any], str]]:
    """Return the content of evaluation.json and the printed text."""

    def run(path: Path, *flags: object) -> tuple[dict[str, Any], str]:
        arguments = ("evaluate", path, "--importance-samples", 40, "--cache", cache, *flags)
        status, printed, err = cli(*arguments)
        assert status == 0, err
        out = Path(str(flags[flags.index("--out") + 1])) if "--out" in flags else path
        return json.loads((out / "evaluation.json").read_text()), printed

    return run


BINARY = ("--likelihood", "bernoulli", "--binarization", "dynamic")


def test_evaluation_of_a_run(train: Any, evaluate: Any) -> None:
    run = train(*BINARY, epochs=8)
    result, printed = evaluate(run)
    saved = checkpoint.load(run / "best.pt")
    assert result["weights"] == weights_digest(saved.model())
    assert (result["checkpoint"], result["data"]) == ("best.pt", "digits")
    assert result["split"] == saved.split
    assert (result["rows"], result["part"], result["own_data"]) == (180, "test", True)
    found = result["bound"]
    assert (found["samples"], found["rows"]) == (40, 180)
    assert found["nll"] < found["negative_elbo"]
    assert found["negative_elbo"] == pytest.approx(found["distortion"] + found["rate"])
    assert 1 <= found["effective_samples"] <= 40
    own = elbo_of(saved.model(), data.load(saved.config).test.x, 0)
    assert found["negative_elbo"] == pytest.approx(-own["elbo"], abs=2)
    assert found["rate"] == pytest.approx(own["rate"], abs=0.5)
    latent = result["latent"]
    assert sum(latent["kl"]) == pytest.approx(found["rate"], rel=1e-5)
    assert latent["active_units"] == sum(v > 0.01 for v in latent["variance_of_mean"])
    assert result["probe"]["accuracy"] > 0.3
    assert result["frechet"]["training_rows"] < result["frechet"]["prior"]
    assert result["frechet"]["classifier_accuracy"] > 0.95
    for words in (
        "best.pt, epoch 8",
        "digits, test rows (drawn by seed)",
        "all 180 of 180",
        "black or white, drawn once here",
        "S = 40",
        f"{found['nll']:.2f}",
        "of 3: Var E[z|x] > 0.01",
        f"{result['frechet']['prior']:.2f}",
    ):
        assert words in printed
    for name in ("kl", "latent", "samples"):
        with Image.open(run / f"{name}.png") as picture:
            assert np.asarray(picture).std() > 10, name


def test_same_seed_gives_the_same_evaluation(train: Any, evaluate: Any) -> None:
    run = train(*BINARY)
    first, _ = evaluate(run, "--rows", 20)
    assert evaluate(run, "--rows", 20)[0] == first
    other, _ = evaluate(run, "--rows", 20, "--seed", 1)
    assert other["bound"]["nll"] != first["bound"]["nll"]


def test_last_checkpoint_is_evaluated_into_another_folder(
    train: Any, evaluate: Any, tmp_path: Path
) -> None:
    run = train(*BINARY)
    out = tmp_path / "deep" / "elsewhere"
    result, _ = evaluate(run / "last.pt", "--out", out)
    assert result["checkpoint"] == "last.pt"
    assert sorted(path.name for path in out.iterdir()) == [
        *("evaluation.json", "kl.png", "latent.png", "samples.png")
    ]
    assert not (run / "evaluation.json").exists()


def test_evaluation_of_few_rows_is_marked(train: Any, evaluate: Any) -> None:
    run = train(*BINARY)
    result, printed = evaluate(run, "--rows", 50)
    assert result["rows"] == result["bound"]["rows"] == 50
    assert "A QUICK LOOK: only the first 50 of 180" in printed
    assert "all 50 of" not in printed


def test_autoencoder_has_no_likelihood(train: Any, evaluate: Any) -> None:
    run = train("--model", "ae", *BINARY)
    result, printed = evaluate(run)
    assert "bound" not in result
    assert "NLL" not in printed
    assert "an autoencoder has no ELBO and no likelihood" in printed
    assert "a point for a code" in printed
    assert result["reconstruction"]["mean_squared_error"] > 0
    assert result["frechet"]["fitted"] > 0
    assert not (run / "kl.png").exists()


def test_cross_entropy_of_grey_rows_is_not_a_likelihood(train: Any, evaluate: Any) -> None:
    result, printed = evaluate(train("--likelihood", "bernoulli"))
    assert "bound" not in result
    assert "cross-entropy of grey pixels is not a likelihood" in printed
    assert "--binarization dynamic" in printed
    assert "-ELBO " not in printed
    assert "NLL " not in printed
    assert result["latent"]["kl"]  # there is a posterior nevertheless


def test_black_and_white_pixels_have_a_likelihood(
    train: Any, evaluate: Any, tmp_path: Path
) -> None:
    rows = 255 * np.random.default_rng(0).integers(0, 2, (90, 5), np.uint8)
    np.save(tmp_path / "rows.npy", rows)
    flags = ("--data", f"npz:{tmp_path / 'rows.npy'}", "--likelihood", "bernoulli")
    result, printed = evaluate(train(*flags))
    assert result["bound"]["nll"] > 0
    assert "not measured: the data have no labels" in printed
    assert result["probe"] == {"missing": "the data have no labels"}
    assert result["frechet"] == {"missing": "the data have no labels, so no classifier"}


def test_missing_labels_are_distinguished_from_one_class(
    train: Any, evaluate: Any, tmp_path: Path
) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (90, 5), np.uint8)
    np.savez(tmp_path / "rows.npz", x_train=rows, y_train=np.arange(90) % 3, x_test=rows[:9])
    result, _ = evaluate(train("--data", f"npz:{tmp_path / 'rows.npz'}"))
    assert result["probe"] == {"missing": "only some rows have labels"}


def test_fixed_binarization(train: Any, evaluate: Any) -> None:
    run = train("--likelihood", "bernoulli", "--binarization", "fixed")
    result, printed = evaluate(run)
    assert "drawn once for all with seed 777" in printed
    assert result["bound"]["nll"] > 0
    assert result["frechet"]["classifier_accuracy"] > 0.95  # on grey rows, because samples are grey


def test_density_is_labeled(train: Any, evaluate: Any) -> None:
    result, printed = evaluate(train("--likelihood", "gaussian"))
    assert "density of pixels scaled to [0, 1]" in printed
    assert "density" in result["likelihood"]
    assert "bound" in result


def test_rows_of_other_data_are_labeled(train: Any, evaluate: Any, tmp_path: Path) -> None:
    run = train(*BINARY, epochs=8)
    rows = np.random.default_rng(0).integers(0, 256, (90, 8, 8), np.uint8)
    np.savez(tmp_path / "others.npz", x=rows, y=np.zeros(90, np.int64))
    own, _ = evaluate(run)
    result, printed = evaluate(run, "--data", f"npz:{tmp_path / 'others.npz'}")
    assert "NOT the rows or the split this model was trained on" in printed
    assert not result["own_data"]
    assert result["bound"]["nll"] > own["bound"]["nll"] + 10
    assert "the labels name one class only" in printed


def test_saved_evaluation_of_other_weights_is_ignored(
    train: Any, evaluate: Any, tmp_path: Path
) -> None:
    run = train(*BINARY)
    weights = open_run(run).weights
    assert saved_evaluation(run / "best.pt", weights) == {}
    result, _ = evaluate(run)
    assert saved_evaluation(run / "best.pt", weights) == result
    assert saved_evaluation(run / "best.pt", open_run(train(*BINARY, "--seed", 1)).weights) == {}
    (run / "evaluation.json").write_text("{")
    assert saved_evaluation(run / "best.pt", weights) == {}


def test_classifier_is_trained_once_and_again_when_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # for the bar
    dataset = data.load(Config())
    first = load_classifier(dataset, tmp_path)
    assert first.accuracy(dataset.test.x, dataset.test.y) > 0.95
    assert first.features(dataset.test.x).shape == (180, 64)
    capsys.readouterr()
    again = load_classifier(dataset, tmp_path)
    assert "training" not in capsys.readouterr().err
    assert torch.equal(first.features(dataset.test.x), again.features(dataset.test.x))
    (path,) = tmp_path.iterdir()
    foreign = torch.load(path, weights_only=True)
    foreign["weights"] = {
        name: 9 * w for name, w in foreign["weights"].items() if "head" not in name
    }
    torch.save(foreign, tmp_path / "foreign")
    for damaged in (b"damaged", (tmp_path / "foreign").read_bytes()):
        path.write_bytes(damaged)
        again = load_classifier(dataset, tmp_path)
        assert "training" in capsys.readouterr().err
        torch.testing.assert_close(first.features(dataset.test.x), again.features(dataset.test.x))


def test_classifier_trains_in_few_steps_when_rows_are_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = data.load(Config())
    few = Rows(dataset.train.x[:52], dataset.train.y[:52])
    calls = []
    forward = Classifier.forward
    monkeypatch.setattr(
        Classifier, "forward", lambda self, x: calls.append(len(x)) or forward(self, x)
    )
    load_classifier(dataclasses.replace(dataset, train=few), tmp_path)
    assert calls == [52] * 100


@pytest.mark.parametrize("shape", [(8, 9), (12, 10, 3), (30,), (4, 20)])
def test_classifier_accepts_every_kind_of_row(shape: tuple[int, ...]) -> None:
    judge = Classifier(RowSpec(shape, "uint8"), torch.tensor([3, 7, 9]))
    x = torch.randint(0, 256, (5, *shape), dtype=torch.uint8)
    assert judge.features(x).shape == (5, 64)
    torch.testing.assert_close(judge.probabilities(x).sum(1), torch.ones(5))
    assert set(judge.labels[judge.probabilities(x).argmax(1)].tolist()) <= {3, 7, 9}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["{nowhere}"], "best.pt does not exist; `train` writes"),
        (["{nowhere}/last.pt"], "last.pt does not exist"),
        (
            ["{run}", "--data", "npz:{vectors}"],
            "this checkpoint was trained on uint8 rows of shape (8, 8)",
        ),
        (["{run}", "--data", "npz:nowhere.npy"], "nowhere.npy does not exist"),
        (["{run}", "--importance-samples", "0"], "0: must be at least 1"),
        (["{run}", "--rows", "1"], "1 test row has no spread to measure"),
        (["{run}", "--seed", "-1"], "-1: must be from 0"),
        (["{run}", "--seed", "one"], "invalid seed value: 'one'"),
        (["{run}", "--rows", "some"], "invalid positive_int value: 'some'"),
        (["{run}", "--out", "{file}"], "--out {file} cannot be made"),
        (["{run}", "--cache", "{file}"], "--cache {file} cannot be made"),
    ],
)
def test_invalid_evaluation_is_rejected_with_a_message(
    cli: Cli, train: Any, tmp_path: Path, flags: list[str], words: str
) -> None:
    np.save(tmp_path / "vectors.npy", np.full((50, 5), 200, np.uint8))
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").mkdir()
    places = {
        "run": train(*BINARY),
        "nowhere": tmp_path / "nowhere",
        "vectors": tmp_path / "vectors.npy",
        "file": tmp_path / "file",
    }
    before = sorted(tmp_path.rglob("*"))
    status, printed, err = cli("evaluate", *(flag.format(**places) for flag in flags))
    assert (status, printed) == (2, "")
    assert words.format(**places) in err
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_changed_data_is_rejected(cli: Cli, train: Any, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (60, 4), np.uint8)
    np.save(tmp_path / "rows.npy", rows)
    run = train("--data", f"npz:{tmp_path / 'rows.npy'}")
    rows[0, 0] ^= 1
    np.save(tmp_path / "rows.npy", rows)
    status, _, err = cli("evaluate", run)
    assert status == 2
    assert "has changed since this checkpoint was trained" in err
