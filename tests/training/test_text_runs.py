"""Runs on text, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from latentd.training import checkpoint
from latentd.training.model import encoder_of
from tests.training.conftest import Cli

TINY = (
    *("--hidden-size", 8, "--latent-size", 4, "--epochs", 2, "--threads", 1),
    *("--batch-size", 32, "--tracker", "none"),
)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """200 made-up words, and one of them twice."""
    rng = np.random.default_rng(0)
    syllables = ["ka", "ri", "mo", "ne", "su", "lé"]
    texts = {"".join(rng.choice(syllables, rng.integers(1, 5))) for _ in range(400)}
    lines = sorted(texts)[:200]
    path = tmp_path / "words.txt"
    path.write_text("\n".join([*lines, lines[0]]), encoding="utf-8")
    return path


def test_a_run_on_text_writes_texts(cli: Cli, words: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    status, stdout, err = cli("train", "--data", f"text:{words}", *TINY, "--out", out)
    assert status == 0
    assert "1 line left out that repeat an earlier one" in err
    header = json.loads(stdout.splitlines()[0])
    assert header["elbo"] == "ELBO of the texts' bytes, each text's end included"
    assert (header["run"]["architecture"], header["run"]["likelihood"]) == ("gru", "categorical")
    longest = max(len(line.encode()) for line in words.read_text(encoding="utf-8").split("\n"))
    assert header["run"]["text_length"] == longest + 1
    pairs = (out / "reconstructions.txt").read_text().splitlines()
    assert all(len(pair.split("\t")) == 2 for pair in pairs)
    assert len((out / "samples.txt").read_text().splitlines()) == 48
    assert (out / "interpolation.txt").exists()
    assert (out / "curves.png").exists()


def test_a_resumed_run_with_hidden_bytes_ends_with_the_same_bits(
    cli: Cli, words: Path, tmp_path: Path
) -> None:
    flags = ("--token-dropout", 0.4, "--kl-warmup-epochs", 2, "--free-bits", 0.1)
    once, twice = tmp_path / "once", tmp_path / "twice"
    source = ("--data", f"text:{words}", *TINY, *flags)
    assert cli("train", *source, "--out", once)[0] == 0
    assert cli("train", *source, "--epochs", 1, "--out", twice)[0] == 0
    assert cli("train", "--out", twice, "--resume", "--epochs", 2)[0] == 0
    expected, found = (checkpoint.load(out / "last.pt").weights for out in (once, twice))
    assert all(torch.equal(found[name], weights) for name, weights in expected.items())


@pytest.mark.slow
def test_a_run_starts_from_the_encoder_of_an_autoencoder(
    cli: Cli, words: Path, tmp_path: Path
) -> None:
    ae, vae = tmp_path / "ae", tmp_path / "vae"
    source = ("--data", f"text:{words}", *TINY)
    assert cli("train", *source, "--model", "ae", "--out", ae)[0] == 0
    slow = ("--encoder-from", ae, "--learning-rate", "1e-9")
    assert cli("train", *source, *slow, "--out", vae)[0] == 0
    theirs = encoder_of(checkpoint.load(ae / "best.pt").model()).state_dict()
    ours = checkpoint.load(vae / "best.pt").model()
    for name, weights in encoder_of(ours).state_dict().items():
        torch.testing.assert_close(weights, theirs[name], atol=1e-6, rtol=0)
    decoder = checkpoint.load(ae / "best.pt").weights["net.decoder.out.weight"]
    assert not torch.isclose(ours.state_dict()["decoder.out.weight"], decoder).all()


@pytest.mark.slow
def test_an_encoder_of_another_net_is_refused(cli: Cli, words: Path, tmp_path: Path) -> None:
    source, ae = ("--data", f"text:{words}", *TINY), tmp_path / "ae"
    assert cli("train", *source, "--model", "ae", "--out", ae)[0] == 0
    status, _, err = cli(
        *("train", *source, "--latent-size", 5, "--encoder-from", ae, "--out", tmp_path / "vae")
    )
    assert status == 2
    assert "--latent-size is 4 there and 5 here" in err
    assert not (tmp_path / "vae").exists()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--architecture", "mlp"), "--architecture mlp does not read text; use gru"),
        (("--likelihood", "bernoulli"), "text has no other; leave --likelihood out"),
        (("--depth", 2), "leave --depth out"),
        (("--augment-flip",), "--augment-flip changes pictures"),
        (("--latents", "spatial"), "--latents spatial needs --architecture resnet or ladder"),
    ],
)
def test_flags_that_are_not_for_text_are_refused(
    cli: Cli, words: Path, tmp_path: Path, flags: tuple[object, ...], reason: str
) -> None:
    status, _, err = cli("train", "--data", f"text:{words}", *flags, "--out", tmp_path / "run")
    assert status == 2
    assert reason in err


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--text-length", 9), "--text-length, --long-texts and --keep-repeated apply only to"),
        (("--token-dropout", 0.1), "--architecture gru and --token-dropout apply only to"),
        (("--architecture", "gru"), "--architecture gru and --token-dropout apply only to"),
        (
            ("--likelihood", "categorical"),
            "--likelihood categorical applies only to --data text:FILE",
        ),
    ],
)
def test_flags_for_text_are_refused_for_other_rows(
    cli: Cli, tmp_path: Path, flags: tuple[object, ...], reason: str
) -> None:
    status, _, err = cli("train", *flags, "--out", tmp_path / "run")
    assert status == 2
    assert reason in err


def test_texts_are_not_compared(cli: Cli, words: Path, tmp_path: Path) -> None:
    status, _, err = cli("compare", "--data", f"text:{words}", "--out", tmp_path / "compared")
    assert status == 2
    assert "compare measures pictures and vectors" in err
