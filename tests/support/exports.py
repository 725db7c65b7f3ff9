"""Checkpoints for the export, and what it published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from latentd import bundle
from tests.support.manifest_documents import schema_errors

Cli = Callable[..., tuple[int, str, str]]


def train(cli: Cli, out: Path, *flags: object) -> Path:
    """A checkpoint of the digits, unless the flags name other data."""
    tiny = ("--epochs", 2, "--hidden-size", 12, "--latent-size", 3)
    status, _, err = cli("train", "--out", out, *tiny, *flags)
    assert status == 0, err
    return out / "best.pt"


def export(cli: Cli, path: Path, bundles: Path, *flags: object) -> bundle.Bundle:
    """Publish a checkpoint as the next version of `m`."""
    status, out, err = cli(
        "export", "--checkpoint", path, "--bundles", bundles, "--name", "m", *flags
    )
    assert status == 0, err
    # The exporter's chatter is hushed; of pictures, texts and tables something is said.
    notes = ("images:", "lines", ".csv:")
    assert all(any(note in line for note in notes) for line in err.splitlines()), err
    published = Path(json.loads(out)["published"])
    assert not schema_errors(json.loads((published / bundle.MANIFEST).read_text()))
    return bundle.load(published)


def session(graph: bytes) -> ort.InferenceSession:
    return ort.InferenceSession(graph, providers=["CPUExecutionProvider"])


def source(folder: Path, shape: tuple[int, ...], dtype: str) -> str:
    """80 rows in a file, for --data."""
    rows = np.random.default_rng(0).integers(0, 256, (80, *shape), np.uint8)
    np.save(folder / "rows.npy", rows if dtype == "uint8" else np.float32(rows / 255))
    return f"npz:{folder / 'rows.npy'}"
