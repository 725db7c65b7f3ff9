"""Square crops of the two color photographs that scikit-learn brings, 427 x 640 pixels each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_sample_images

_HELD_OUT = 160  # columns at the right: no training crop touches them


def write_crops(path: Path, side: int, stride: int) -> str:
    """Write x_train and x_test, uint8 (crops, side, side, 3), as .npz. Returns it for --data."""
    photographs = load_sample_images().images
    train = [_crops(image[:, :-_HELD_OUT], side, stride) for image in photographs]
    test = [_crops(image[:, -_HELD_OUT:], side, side // 2) for image in photographs]
    np.savez(path, x_train=np.concatenate(train), x_test=np.concatenate(test))
    return f"npz:{path}"


def _crops(image: np.ndarray, side: int, stride: int) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(image, (side, side), axis=(0, 1))
    kept = windows[::stride, ::stride].transpose(0, 1, 3, 4, 2)
    return kept.reshape(-1, side, side, 3)
