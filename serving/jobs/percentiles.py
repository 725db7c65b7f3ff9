"""How unusual a row's scores are: the share of training rows that score no higher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from latentd.bundle import SCORES

Floats = NDArray[np.float32]

COLUMNS: Final = {f"{name}_percentile": name for name in SCORES}
"""Name of each column of percentiles, and of the score it is of."""


def percentile(values: Floats, of: str, training_scores: Mapping[str, Any]) -> Floats:
    """0 to 100 for each of `values`, which are scores of the kind `of`.

    Linear between the bundle's quantiles. 100: no training row that was scored has more; so a
    large reconstruction error is unusual near 100, and a small ELBO near 0.
    """
    levels, quantiles = training_scores["levels"], training_scores[of]
    found: Floats = np.interp(values, quantiles, levels).astype(np.float32)
    return found
