"""Which rows are outliers, by their reconstruction errors, and what contributes most to an error.

A contribution is a negative log density in its column's own unit. One in a large unit adds many
nats to every row, and one in a small unit takes some away. So columns are ranked by their excess:
the contribution less the column's median among the training rows. Standard library only, but for
the arrays that are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from latentd.columns import Column

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


MEDIANS: Final = "median_contributions"
"""The columns' medians in Manifest.training_scores."""


@dataclass(frozen=True)
class Threshold:
    """From which score on a row is an outlier: if its reconstruction error, -log p(x | z) through
    the mean, is larger than this.

    percentile: so many percent of the training rows have a smaller one
    validation_rows: held-out rows that were compared with it; 0: none were
    validation_outliers: so many of them have a larger one
    """

    percentile: float
    reconstruction_error: float  # nats
    validation_rows: int = 0
    validation_outliers: int = 0

    def to_json(self) -> dict[str, float | int]:
        """As a manifest has it: without counts of validation rows if there were none."""
        known = {"percentile": self.percentile, "reconstruction_error": self.reconstruction_error}
        if not self.validation_rows:
            return known
        counts = ("validation_rows", "validation_outliers")
        return known | {name: getattr(self, name) for name in counts}

    def __str__(self) -> str:
        held_out = ""
        if self.validation_rows:
            share = 100 * self.validation_outliers / self.validation_rows
            held_out = f" and by {share:.3g} % of {self.validation_rows:,} validation rows"
        return (
            f"reconstruction_error above {self.reconstruction_error:.6g} nats, exceeded by "
            f"{100 - self.percentile:.6g} % of the training rows{held_out}"
        )


def are_outliers(errors: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Whether each row's reconstruction error exceeds the threshold, in nats.

    errors: float32, as responses and files hold them: their readers can compare them too
    """
    exceeds: NDArray[np.bool_] = errors.astype("f8") > threshold
    return exceeds


def excess(
    contributions: NDArray[np.float32], training_scores: Mapping[str, Any]
) -> NDArray[np.float32] | None:
    """What exceeds the median of each column: contributions and result are (..., columns), in nats.
    None: the medians are unknown."""
    medians = training_scores.get(MEDIANS)
    if medians is None:
        return None
    found: NDArray[np.float32] = (contributions - medians).astype("f4")
    return found


def largest_contributions(
    terms: NDArray[Any], columns: Sequence[Column], count: int
) -> list[tuple[int, str, float]]:
    """The largest contributions to the error of a row, or the largest excess: the index of each,
    the name of its column, or its place as in "[3, 5]", and nats. The largest is first."""
    flat = terms.reshape(-1).astype("f8")
    order = (-flat).argsort(kind="stable")[:count].tolist()
    named = len(columns) == flat.size
    names = [columns[i].name if named else _place(i, terms.shape) for i in order]
    return [(i, name, float(flat[i])) for name, i in zip(names, order, strict=True)]


def _place(index: int, shape: Sequence[int]) -> str:
    place: list[int] = []
    for length in reversed(shape):
        index, at = divmod(index, length)
        place.insert(0, at)
    return str(place)
