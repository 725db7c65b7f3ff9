"""Whether a half of an owner's model gives the same for a row, again and whatever is beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from latentd.training.adopt.modules import halves
from latentd.training.adopt.modules.halves import Half
from latentd.training.errors import AdmissionError

ENCODE: Final = "encode(x)"
DECODE: Final = "decode(z)"
"""The halves, as messages call them."""
ADVICE: Final = {
    ENCODE: "Let it return the mean and the log-variance, or their distribution, not a draw",
    DECODE: "Let it add no noise",
}
"""What to do where a half draws random numbers."""
_CLOSE: Final = 1e-3  # of the largest value: far more than rounding, far less than a draw


def require(
    what: str, half: Half, rows: Tensor, given: Sequence[Tensor] | None = None
) -> Sequence[Tensor]:
    """What it gives for the rows. Raises AdmissionError if it gives something else the second time,
    or for a row alone. The exported graph is examined too; but an exporter may leave out what draws
    or mixes."""
    with half.evaluation():
        first, again = half(rows) if given is None else given, half(rows)
        try:
            alone = half(rows[:1])
        except Exception as error:  # of the owner's code
            raise _takes_no_row_alone(what, halves.in_words(error)) from None
    if not all(map(_are_close, first, again)):
        raise AdmissionError(
            f"{what} draws random numbers inside: the same rows gave something else the second "
            f"time; expected the same. {ADVICE[what]}."
        )
    for one, other in zip(first, alone, strict=True):
        if len(one) != len(rows):
            continue  # another size is taken for more rows: the sizes are examined later
        if one[:1].shape != other.shape:
            raise _takes_no_row_alone(what, f"it gives {list(other.shape)}")
        if not _are_close(one[:1], other):
            raise AdmissionError(
                f"{what} mixes the rows of a batch: a row alone gave something else than the same "
                "row amid others; expected the same. Remove what computes over the batch axis, "
                "such as normalization by the statistics of a batch."
            )
    return first


def _takes_no_row_alone(what: str, how: str) -> AdmissionError:
    return AdmissionError(
        f"{what} takes several rows but not one alone: {how}. Make it take any number of rows; "
        "what squeezes axes of length one may be the cause."
    )


def _are_close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    one, other = one.detach().double(), other.detach().double()
    tolerance = _CLOSE * float(one.nan_to_num().abs().max())
    return torch.allclose(one, other, rtol=0, atol=tolerance, equal_nan=True)
