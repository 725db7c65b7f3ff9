"""How much the outputs of two implementations of one net may differ. Standard library only."""

from __future__ import annotations

from typing import Final, NamedTuple


class Tolerance(NamedTuple):
    """The allowed differences. For arrays: atol * max(1, max |expected|) + rtol * |expected|."""

    atol: float
    rtol: float
    levels: int  # of 255: the allowed difference of a rounded byte
    delta_elbo: float  # nats, mean over rows; for each 1000 values of a row, if it has more


TOLERANCES: Final = {
    "float32": Tolerance(atol=1e-5, rtol=1e-4, levels=1, delta_elbo=1e-3),
    # float16's spacing is 2^-11 of a number. Logits of 20 and sums of hundreds are common.
    "float16": Tolerance(atol=2e-2, rtol=1e-2, levels=3, delta_elbo=0.1),
}
"""By the precision of the net."""
