"""Refusal before a call is read.

Where rows are cheap to run, receiving a call is most of its cost. Under overload a server that
reads each call in order to refuse it has little left for the calls it could answer. So calls that
no lane would admit are refused by their deadline alone, by the lanes' own prediction.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Final

from serving.errors import Overloaded
from serving.metrics import Metrics
from serving.repository import Repository
from serving.rowqueue import MARGIN

_RECENT: Final = 1.0  # seconds since its last batch for which a lane counts as asked for
_ONE_IN: Final = 16
"""Of the calls to be refused, one in so many is read after all: it may name a model whose lane is
free and was not asked for lately. Once that lane has run, it counts, and nobody is refused."""
_STEP: Final = 0.01  # seconds; waits are told in such steps, so that refusals repeat


class Door:
    """Who need not be read."""

    def __init__(
        self,
        repository: Repository,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._repository, self._metrics, self._clock = repository, metrics, clock
        self._refused = 0

    def refusal(self, lanes: Sequence[str], deadline: float) -> Overloaded | None:
        """Why a call that needs all these lanes ("encoder", "decoder") by `deadline` cannot be
        answered in time, whatever it asks for; None: read it."""
        if deadline == math.inf:
            return None
        now = self._clock()
        for lane in lanes:
            wait = self._least_wait(lane, now)
            if now + wait * MARGIN > deadline:
                self._refused += 1
                if self._refused % _ONE_IN == 0:
                    return None
                self._metrics.shed.labels(lane, "door").inc()
                return too_late(math.ceil(wait / _STEP) * _STEP)
        return None

    def _least_wait(self, lane: str, now: float) -> float:
        """The shortest wait in the lanes of that name which are in use."""
        least = math.inf
        for model in self._repository.models():
            one = model.encoder if lane == "encoder" else model.decoder
            if now - one.ended < _RECENT:
                least = min(least, one.least_wait)
        return 0.0 if least == math.inf else least


def too_late(wait: float) -> Overloaded:
    """The refusal of a call with less left than `wait` seconds."""
    return Overloaded(
        "door", f"The wait would be about {wait:.2f} s and this call has less left", wait
    )
