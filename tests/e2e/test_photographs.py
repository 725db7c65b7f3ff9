"""A folder of 400 mixed files becomes a served model by the README's three commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentd import bundle
from latentd.__main__ import main as latentd
from latentd.client import Client
from latentd.training.config import Config
from latentd.training.data import load
from latentd.training.dataset import Dataset
from latentd.training.readers.image_files import find
from tests.support import photographs
from tests.support.photographs import Photographs

pytestmark = pytest.mark.timeout(400)
SIZE = ("--image-size", "64x48")
AUGMENTED = ("--augment-flip", "--augment-crop", "4", "--augment-color", "0.1")
SHORT = ("--epochs", "12", "--hidden-size", "16", "--batch-size", "32")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("photographs")


@pytest.fixture(scope="module")
def folder(root) -> Path:
    return root / "photos"


@pytest.fixture(scope="module")
def made(folder) -> Photographs:
    return photographs.make(folder)


@pytest.fixture(scope="module")
def run(root, folder, made) -> Path:
    """Trained."""
    out = root / "run"
    files = ("train", "--data", f"images:{folder}", *SIZE, "--bad-images", "skip")
    assert latentd([*files, *AUGMENTED, *SHORT, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def models(root, run) -> Path:
    """Exported."""
    export = ("export", "--checkpoint", str(run / "best.pt"), "--bundles", str(root / "models"))
    assert latentd([*export, "--name", "photos"]) == 0
    return root / "models"


@pytest.fixture(scope="module")
def target(models, module_serve) -> str:
    """Served."""
    return module_serve("--bundles", str(models), "--workers", "1").ready()[0]


@pytest.fixture(scope="module")
def dataset(folder, run) -> Dataset:
    return load(Config(data=f"images:{folder}", image_size="64x48", bad_images="skip"), run)


def test_all_faults_are_in_one_report(folder, made, capsys, tmp_path):
    out = tmp_path / "run"
    assert latentd(["train", "--data", f"images:{folder}", *SIZE, "--out", str(out)]) == 2
    report = capsys.readouterr().err
    assert len(report.splitlines()) == 1
    assert "28 of 400 files cannot be used" in report
    for reason, count in made.bad.items():
        assert f"{count} {reason} (" in report
    assert report.rstrip().endswith("or pass --bad-images skip.")
    assert not out.exists()


def test_training_goes_on_without_the_faults_and_names_them(folder, made, run, dataset, capsys):
    load(Config(data=f"images:{folder}", image_size="64x48", bad_images="skip"), run)
    said = capsys.readouterr().err
    assert f"{400 + sum(made.others.values())} files found, 372 taken" in said
    assert "28 that cannot be used" in said
    for reason, count in made.others.items():
        assert f"{count} {reason}" in said
    for reason, count in made.bad.items():
        assert f"{count} {reason} (" in said
    assert find(folder).left_out == made.others
    listed = (run / "pictures" / "left_out.txt").read_text().splitlines()
    assert len(listed) == 28
    for reason, count in made.bad.items():
        assert sum(f": {reason}" in line for line in listed) == count
    assert [len(dataset.train), len(dataset.validation), len(dataset.test)] == [301, 34, 37]
    epochs = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()[1:-1]]
    assert len(epochs) == 12
    assert epochs[-1]["validation_elbo"] > epochs[0]["validation_elbo"]


def test_every_good_file_is_a_row_upright_and_in_color(made, dataset):
    assert dataset.spec.shape == (64, 48, 3), "one color image makes all rows RGB"
    rows = np.concatenate([part.x for part in (dataset.train, dataset.validation, dataset.test)])
    shown = {
        path: np.asarray(picture.resize((48, 64), Image.Resampling.LANCZOS))
        for path, picture in made.upright.items()
    }
    left, right = (
        array.reshape(len(array), -1).astype(np.float32) / 255
        for array in (rows, np.stack(list(shown.values())))
    )
    squares = (left**2).sum(1)[:, None] + (right**2).sum(1) - 2 * left @ right.T
    nearest = squares.argmin(0)
    assert len(set(nearest)) == len(shown) == 372
    error = np.sqrt(squares.min(0).clip(0) / left.shape[1])
    wrong = {path: e for path, e in zip(shown, error, strict=True) if e > 0.05}
    assert not wrong


def test_augmentation_is_in_the_log_and_in_the_manifest(run, models):
    header = json.loads((run / "log.jsonl").read_text().splitlines()[0])
    manifest = bundle.load(models / "photos" / "1").manifest
    for settings in (header["run"], manifest.training["config"]):
        assert settings["augment_flip"] is True
        assert settings["augment_crop"] == 4
        assert settings["augment_color"] == 0.1


def test_served_model_reconstructs_photographs(target, dataset):
    x = dataset.test.x.numpy()
    with Client(target) as client:
        made = client.reconstruct(x).x.astype(float)
    mean = dataset.train.x.numpy().mean(0)
    error, guessed = np.square(made - x).mean(), np.square(mean - x).mean()
    assert error < 0.6 * guessed


def test_client_sends_a_file_of_the_folder(target, made, tmp_path, capsys):
    """As it is: of another size, stored sideways, in the colors of printers."""
    paths = list(made.upright)
    out = tmp_path / "out.png"
    arguments = ["client", "reconstruct", *map(str, (paths[2], paths[6 * 11])), "--fit", "resize"]
    assert latentd([*arguments, "--server", target, "--out", str(out), "--scores"]) == 0
    assert re.search(r"elbo|ELBO", capsys.readouterr().out)
    with Image.open(out) as sheet:
        assert sheet.mode == "RGB"
