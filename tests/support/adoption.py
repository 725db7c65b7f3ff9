"""ONNX graphs that are adopted or refused, with their cards, and what helps to compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from sklearn.datasets import load_sample_images

from latentd.training.adopt import adopt, sources
from latentd.training.errors import TrainingError

FREE = {name: {"min": 16, "max": 256, "default": 64} for name in "hw"}

COMMON: dict[str, Any] = {
    "scale": 1.0,
    "shift": 0.0,
    "prior": "none",
    "license": "MIT",
    "source": "a test",
}

KL = COMMON | {
    "range": [-1.0, 1.0],
    "scale": 0.18215,
    "shift": 0.25,
    "clip_log_var": [-6.0, 7.0],
    "sizes": FREE,
}


def run(graph: Path, rows: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    arrays: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: rows})
    return arrays


def photographs(height: int, width: int, count: int = 2) -> np.ndarray:
    picture = load_sample_images().images[1]
    return np.stack([picture[50 * i : 50 * i + height, 90 : 90 + width] for i in range(count)])


def published(pair: tuple[Path, Path], card: dict[str, Any], root: Path, **more: Any) -> Path:
    lines: list[str] = []
    folder = adopt(sources.onnx(*pair), card, root, "adopted", report=lines.append, **more)
    assert all(lines)
    assert lines[-1] == f"published: {folder}"
    return folder


def refuse(
    words: str, pair: tuple[Path, Path], card: dict[str, Any], root: Path, **more: Any
) -> None:
    """It is refused with these words, and nothing is published."""
    with pytest.raises(TrainingError, match=words):
        adopt(sources.onnx(*pair), card, root / "models", "refused", report=lambda _: None, **more)
    assert not (root / "models").exists()
