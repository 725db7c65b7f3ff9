"""From which reconstruction error on a row is an outlier. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Threshold:
    """From which score on a row is an outlier: if its reconstruction error, -log p(x | z) through
    the mean, is larger than this.

    percentile: so many percent of the training rows have a smaller one
    """

    percentile: float
    reconstruction_error: float  # nats

    def __str__(self) -> str:
        return (
            f"reconstruction_error above {self.reconstruction_error:.6g} nats, as of "
            f"{100 - self.percentile:.6g} % of the training rows"
        )


def are_outliers(errors: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Whether each row's reconstruction error exceeds the threshold, in nats.

    errors: float32, as responses and files hold them: their readers can compare them too
    """
    exceeds: NDArray[np.bool_] = errors.astype("f8") > threshold
    return exceeds
