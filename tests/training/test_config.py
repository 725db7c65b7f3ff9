"""The settings: bounds, round trip, and the command line derived from them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from latentd.training.config import Config, flag
from latentd.training.errors import TrainingError
from latentd.training.likelihoods import LIKELIHOODS
from latentd.training.model import MODELS
from latentd.training.networks import NETWORKS

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--epochs", "0"], "--epochs must be at least 1, not 0."),
        (["--latent-size", "0"], "--latent-size must be at least 1, not 0."),
        (["--latent-size", "65536"], "--latent-size must be below 65536, not 65536."),
        (["--learning-rate", "-0.1"], "--learning-rate must be above 0, not -0.1."),
        (["--learning-rate", "nan"], "--learning-rate must be a finite number, not nan."),
        (["--val-fraction", "1"], "--val-fraction must be below 1, not 1.0."),
        (["--batch-size", "-3"], "--batch-size must be at least 1, not -3."),
        (["--image-size", "32"], "--image-size must be HEIGHTxWIDTH in pixels (height x width)"),
        (["--image-size", "32x32"], "--image-size resizes images:DIR only"),
        (["--binarization", "dynamic", "--likelihood", "gaussian"], "--binarization dynamic"),
        (["--binarization", "fixed"], "--binarization fixed"),
        (["--fixed-std", "0.1", "--likelihood", "bernoulli"], "--fixed-std applies only to"),
        (["--model", "ae", "--importance-samples", "5"], "--model ae has no KL"),
        (["--model", "ae", "--free-bits", "0.1"], "--model ae has no KL"),
        (
            ["--importance-samples", "5", "--beta", "2"],
            "--importance-samples above 1 trains the importance-weighted bound",
        ),
        (
            ["--importance-samples", "5", "--kl-warmup-epochs", "2"],
            "--importance-samples above 1 trains the importance-weighted bound",
        ),
        (["--kl-warmup-epochs", "2", "--kl-cycles", "3"], "choose one"),
        (["--importance-samples", "0"], "--importance-samples must be at least 1, not 0."),
        (["--ema-decay", "1"], "--ema-decay must be below 1, not 1.0."),
        (["--lr-schedule", "step"], "argument --lr-schedule: invalid choice"),
        (
            ["--likelihood", "discretized-logistic", "--data", "npz:{floats}"],
            "needs uint8 rows and npz:",
        ),
        (
            ["--architecture", "resnet", "--data", "npz:{vectors}"],
            "--architecture resnet needs images",
        ),
        (["--architecture", "resnet", "--depth", "4"], "--depth 4 halves images"),
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["--architecture", "transformer"], "argument --architecture: invalid choice"),
        (["--epoch-count", "3"], "no flag --epoch-count"),
    ],
)
def test_invalid_flag_is_rejected_by_name(
    cli: Cli, tmp_path: Path, flags: list[str], words: str
) -> None:
    import numpy as np

    np.save(tmp_path / "vectors.npy", np.full((50, 5), 200, np.uint8))
    np.save(tmp_path / "floats.npy", np.zeros((50, 5), np.float32))
    files = {name: tmp_path / f"{name}.npy" for name in ("vectors", "floats")}
    flags = [text.format(**files) for text in flags]
    status, out, err = cli("train", "--out", tmp_path / "run", *flags)
    assert status == 2
    assert words in err
    assert out == ""
    assert not (tmp_path / "run").exists()


def test_config_round_trip() -> None:
    config = Config(latent_size=3, hidden_size=None, learning_rate=1)
    assert Config.from_dict(dataclasses.asdict(config)) == config


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"latent_sise": 3}, "unknown settings: latent_sise"),
        ({"latent_size": "3"}, "--latent-size takes a value of type int, not '3'"),
        ({"latent_size": True}, "--latent-size takes a value of type int, not True"),
        ({"compile": 1}, "--compile takes a value of type bool, not 1"),
        ({"latent_size": None}, "--latent-size takes a value of type int, not None"),
        ({"model": "gan"}, "--model is one of vae, ae, not 'gan'"),
    ],
)
def test_unknown_keys_and_wrong_types_are_errors(raw: dict[str, object], words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        Config.from_dict(raw)


def test_help_has_every_setting_and_loads_no_torch() -> None:
    code = (
        "import sys; from latentd.training.__main__ import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    printable = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    for field in dataclasses.fields(Config):
        assert flag(field.name) in printable
    assert "examples:" in printable
    assert printable.endswith("False\n")


def test_help_is_shown_without_arguments(cli: Cli) -> None:
    status, out, err = cli()
    assert (status, err) == (0, "")
    assert "train" in out
    assert "export" in out


def test_choices_equal_the_registered_names() -> None:
    choices = {field.name: field.metadata.get("choices") for field in dataclasses.fields(Config)}
    assert set(choices["architecture"]) == {"auto", *NETWORKS}
    assert set(choices["model"]) == set(MODELS)
    assert set(choices["likelihood"]) == {"auto", "categorical", *LIKELIHOODS}
