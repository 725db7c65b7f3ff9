"""Small real data in files, and runs too short to be any good but long enough to be true."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.__main__ import main

# OMP_NUM_THREADS=1 for machines with other work to do: threads that wait for one another crawl.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run `python -m training ...` in this process: exit status, stdout, stderr."""

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in argv])
        except SystemExit as stop:  # argparse's own errors
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def picture_folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """40 colour pictures, 11 high and 18 wide, in two folders."""
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
