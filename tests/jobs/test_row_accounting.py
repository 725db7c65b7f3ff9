"""A job over MNIST's 70,000 images, killed repeatedly: each row is in the output exactly once."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def loaded(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.data
def test_no_image_of_mnist_is_lost_or_doubled(tmp_path):
    counted, models = (
        loaded(ROOT / "tests" / "support" / "row_accounting.py"),
        loaded(ROOT / "tests" / "bench" / "models.py"),
    )
    folder = Path(os.environ.get("LATENTD_DATA", ROOT.parent / "shared" / "data")) / "mnist"
    images = sorted(folder.glob("*images*"))
    if not images:
        pytest.skip(f"{folder} holds no MNIST; set LATENTD_DATA to the folder that does")
    bundle = models.publish(tmp_path / "models", "mlp")
    flags = ("--shard-rows", 4096)
    whole = counted.command(images, bundle, tmp_path / "whole", *flags, "--processes", 1)
    seconds, _ = counted.whole(whole)
    words = counted.command(images, bundle, tmp_path / "killed", *flags, "--processes", 2)
    assert counted.killed(words, 5, seconds / 2, seed=0) >= 2
    times = counted.count(tmp_path / "killed")
    np.testing.assert_array_equal(times, np.ones(70_000, np.int64))
    assert counted.digests(tmp_path / "killed") == counted.digests(tmp_path / "whole")
