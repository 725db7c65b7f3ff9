"""What --augment-flip, --augment-crop and --augment-color do to rows, and to a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentd.training import checkpoint
from latentd.training.augmentation import augment
from latentd.training.config import Config
from tests.support.runs import TINY, assert_same_run

Cli = Callable[..., tuple[int, str, str]]
FLAGS = ("--augment-flip", "--augment-crop", 2, "--augment-color", 0.2)


def pictures(rows: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (rows, 6, 5, 3), np.uint8))
    return x if dtype == torch.uint8 else x.float() / 255


def augmented(x: torch.Tensor, seed: int = 0, **settings: Any) -> torch.Tensor:
    return augment(x, Config(**settings), torch.Generator().manual_seed(seed))


def test_without_flags_nothing_is_changed_or_drawn() -> None:
    generator, x = torch.Generator().manual_seed(0), pictures(3)
    before = generator.get_state()
    assert augment(x, Config(), generator) is x
    assert torch.equal(generator.get_state(), before)


def test_half_of_the_rows_are_mirrored() -> None:
    x = pictures(200)
    found = augmented(x, augment_flip=True)
    same, mirrored = (
        torch.tensor([torch.equal(a, b) for a, b in zip(found, other, strict=True)])
        for other in (x, x.flip(2))
    )
    assert (same ^ mirrored).all()
    assert 70 < same.sum() < 130  # five standard deviations are 35


def test_rows_are_moved_and_reflected() -> None:
    x = pictures(300)
    padded = torch.nn.functional.pad(x.permute(0, 3, 1, 2).float(), (2, 2, 2, 2), mode="reflect")
    padded = padded.permute(0, 2, 3, 1).to(torch.uint8)
    offsets = set()
    for row, found in zip(padded, augmented(x, augment_crop=2), strict=True):
        [offset] = [
            (i, j)
            for i in range(5)
            for j in range(5)
            if torch.equal(row[i : i + 6, j : j + 5], found)
        ]
        offsets.add(offset)
    assert len(offsets) == 25


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_colors_change_by_no_more_than_asked(dtype: torch.dtype) -> None:
    x = pictures(50, dtype)
    found = augmented(x, augment_color=0.1)
    assert found.dtype == dtype
    highest = 255 if dtype == torch.uint8 else 1
    assert not torch.equal(found, x)
    # Three factors of at most 1.1 each, of values or distances that are at most `highest`.
    assert (found.float() - x.float()).abs().max() <= highest * (1.1**3 - 1) + 0.5
    grey = torch.full((4, 3, 3, 3), 0.5)
    changed = augmented(grey, augment_color=0.5)
    assert (changed == changed[:, :1, :1, :1]).all()  # contrast and saturation leave grey alone
    assert changed[:, 0, 0, 0].unique().numel() == 4


def test_augmented_run_resumes_to_the_bit(cli: Cli, picture_folder: Path, tmp_path: Path) -> None:
    arguments = ("--data", f"images:{picture_folder}", *TINY, *FLAGS)
    whole, parts, plain = tmp_path / "whole", tmp_path / "parts", tmp_path / "plain"
    assert cli("train", "--out", whole, *arguments)[0] == 0
    assert cli("train", "--out", parts, *arguments, "--epochs", 2)[0] == 0
    assert cli("train", "--out", parts, "--resume", "--epochs", 4)[0] == 0
    assert_same_run(whole, parts)
    assert cli("train", "--out", plain, *arguments[:-5])[0] == 0
    saved = [checkpoint.load(run / "last.pt") for run in (whole, plain)]
    assert saved[0].config.augment_flip
    assert saved[0].split == saved[1].split  # validation and test rows are not changed
    assert saved[0].history[0]["train_elbo"] != saved[1].history[0]["train_elbo"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--augment-flip",), "--augment-flip changes pictures, and npz:"),
        (("--augment-color", 0.1), "--augment-color changes pictures"),
    ],
)
def test_vectors_are_not_augmented(
    cli: Cli, tmp_path: Path, flags: tuple[object, ...], words: str
) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).random((50, 4), np.float32))
    status, _, err = cli(
        "train", "--data", f"npz:{tmp_path / 'rows.npy'}", "--out", tmp_path / "run", *TINY, *flags
    )
    assert status == 2
    assert words in err
    assert not (tmp_path / "run").exists()


def test_crop_as_large_as_the_pictures_is_rejected(cli: Cli, tmp_path: Path) -> None:
    status, _, err = cli("train", "--out", tmp_path / "run", *TINY, "--augment-crop", 8)
    assert status == 2
    assert "--augment-crop 8 is as large as the pictures, 8x8; use a smaller one." in err
