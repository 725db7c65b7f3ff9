"""Real rows of the owner's, from a file of NumPy: for the checks, and for percentiles of scores."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from latentd.bundle import Manifest
from latentd.training.array import Array
from latentd.training.errors import TrainingError
from latentd.training.readers import arrays

_FEWEST: Final = 2


def read(path: Path, manifest: Manifest) -> Array:
    """Rows of x at the default size, as clients send them. Raises TrainingError.

    path: a .npy or .npz file; of an .npz its only array, or x, or x_train
    """
    if not path.is_file():
        raise TrainingError(f"--rows {path} is not a file; expected a .npy or .npz file of rows.")
    rows, x = arrays.read_numpy(path).x, manifest.default.x
    if x.kind == "image" and x.shape[2:] == (1,) and rows.shape[1:] == x.shape[:2]:
        rows = rows[..., None]
    dtype = np.dtype(x.dtype)
    same = rows.dtype == dtype or rows.dtype.kind == dtype.kind == "f"
    if not same or rows.shape[1:] != x.shape:
        raise TrainingError(
            f"--rows {path} has rows {rows.dtype} {list(rows.shape[1:])}; expected {dtype} "
            f"{list(x.shape)}, as clients send them."
        )
    if len(rows) < _FEWEST:
        raise TrainingError(f"--rows {path} has {len(rows)} rows; expected {_FEWEST} or more.")
    rows = rows.astype(dtype)
    low, high = x.range if x.bounded else (-np.inf, np.inf)
    wrong = ~(np.isfinite(rows) & (rows >= low) & (rows <= high)).reshape(len(rows), -1).all(axis=1)
    if wrong.any():
        raise TrainingError(
            f"--rows {path}: row {int(np.argmax(wrong))} has NaN, infinity or a value outside the "
            f"range {low:g} to {high:g}."
        )
    return rows
