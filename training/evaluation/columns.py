"""How well a model knows each column: reconstruction, and samples beside the data."""

from __future__ import annotations

import copy
from typing import Any, Final

import numpy as np
from torch import Tensor

from latentd.training.evaluation import samples
from latentd.training.evaluation.loaded_run import LoadedRun
from latentd.training.sheets.table import sampled

_SAMPLES: Final = 5000


def measure_columns(loaded: LoadedRun, target: Tensor, mean: Tensor, seed: int) -> dict[str, Any]:
    """Of each column, by name. If it is numeric: the share of its variance that the reconstruction
    explains, and mean and standard deviation of test rows and of samples. If it is categorical: the
    share of rows reconstructed, and how far the levels' frequencies are from those of samples.

    target: test rows (rows, columns), in the data's units. mean: their codes (rows, latents).
    """
    x = target.cpu().double().numpy()
    again = samples.decode(loaded.model, mean).double().numpy()
    drawn = sampled(copy.deepcopy(loaded.model).cpu(), _SAMPLES, seed).double().numpy()
    found: dict[str, Any] = {}
    for place, column in enumerate(loaded.model.spec.columns):
        real, rebuilt, new = (rows[:, place] for rows in (x, again, drawn))
        if column.is_categorical:
            shares = [
                np.bincount(values.astype(np.int64), minlength=column.cardinality) / len(values)
                for values in (real, new)
            ]
            found[column.name] = {
                "accuracy": float((real == rebuilt).mean()),
                "total_variation": float(0.5 * np.abs(shares[0] - shares[1]).sum()),
            }
        else:
            variance = real.var()
            error = np.square(real - rebuilt).mean()
            found[column.name] = {
                "r2": float(1 - error / variance) if variance else None,
                "mean": float(real.mean()),
                "std": float(real.std()),
                "sample_mean": float(new.mean()),
                "sample_std": float(new.std()),
            }
    return found
