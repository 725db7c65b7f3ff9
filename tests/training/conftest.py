"""Small real data in files, and short runs: their models are poor, but the runs are real."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentd.training import data
from latentd.training.__main__ import main
from latentd.training.config import Config
from tests.support.runs import SIX_EPOCHS, TINY

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run `latentd ...` in this process: exit status, stdout, stderr."""

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in argv])
        except SystemExit as stop:  # argparse raises this on errors
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def picture_folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """40 color images, 11 high and 18 wide, in two folders."""
    folder = tmp_path / "pictures"
    for i in range(40):
        path = folder / ("cats" if i % 2 else "dogs") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (11, 18, 3), np.uint8)).save(path)
    return folder


def write_idx(path: Path, array: np.ndarray) -> None:
    data = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def idx_folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """MNIST's four files, 60 training rows and 10 test rows of 9x10; labels not compressed."""
    folder = tmp_path / "idx"
    folder.mkdir()
    for split, rows in (("train", 60), ("t10k", 10)):
        images = rng.integers(0, 256, (rows, 9, 10), np.uint8)
        write_idx(folder / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte", (np.arange(rows) % 10).astype(np.uint8))
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of the digits."""
    out = tmp_path_factory.mktemp("digits") / "run"
    assert main(["train", "--out", str(out), *map(str, TINY), "--epochs", "2"]) == 0
    return out / "best.pt"


@pytest.fixture
def whole(cli: Cli, tmp_path: Path) -> Path:
    """An uninterrupted run of four epochs."""
    status, _, err = cli("train", "--out", tmp_path / "whole", *TINY)
    assert status == 0, err
    return tmp_path / "whole"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classifiers, shared by all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digits upside down and inverted: other data of the same shape."""
    digits = data.load(Config())
    path = tmp_path_factory.mktemp("others") / "others.npz"
    x = torch.cat((digits.train.x, digits.test.x)).flip(1).numpy()
    np.savez(path, x=255 - x)
    return f"npz:{path}"


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory, cache: Path, others: str) -> Path:
    """A finished comparison. Its budget is too small to support any claim."""
    out = tmp_path_factory.mktemp("compared") / "out"
    binary = ("--likelihood", "bernoulli", "--binarization", "dynamic")
    given = ("--out", out, "--seeds", 2, "--ood-data", others, "--cache", cache)
    assert main(["compare", *map(str, (*given, *SIX_EPOCHS, *binary))]) == 0
    return out
