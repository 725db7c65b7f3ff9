"""Admission control: reject a call before its message is read.

Rows can be so cheap to run that receiving a call is most of its cost. Under overload, a server that
reads each call only to reject it has little time left for the calls it could answer. So a call is
rejected by its deadline alone if every batcher that it may enter first predicts too long a wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Final

from latentd.batching.rowqueue import WAIT_SAFETY_FACTOR
from latentd.models.repository import Repository

_ACTIVE_SECONDS: Final = 1.0
"""A batcher counts as in use for so long after its last batch."""
_PROBE_EVERY: Final = 16
"""Of the calls to reject, one in so many is read nevertheless. It may be for a batcher that is free
and was not in use lately, another model's for example. Once that one has run, it counts, and no
call is rejected."""
_MIN_LEAD_STEP: Final = 0.0005  # seconds
_MAX_LEAD: Final = 0.1  # seconds
_GROW: Final = 1.1
_SHRINK: Final = 0.99
"""With these two, about one in ten of the calls read under overload is read in vain."""


class AdmissionController:
    """Decides which calls are rejected before they are read.

    lead_seconds: added to the predicted wait, as reading a call takes some of its time. Learned
                  from the calls that were read in vain.
    """

    def __init__(self, repository: Repository, clock: Callable[[], float] = time.monotonic) -> None:
        self._repository, self._clock = repository, clock
        self._rejected = 0
        self.lead_seconds = 0.0

    def excess_wait(self, graphs: Collection[str], deadline: float) -> float | None:
        """The predicted wait in seconds, if it exceeds the deadline; None: read the call.

        graphs:   the wait is that of the least busy batcher for graphs of these names
        deadline: on time.monotonic's clock
        """
        now = self._clock()
        min_wait = self._min_wait(graphs, now)
        seconds = self.lead_seconds + min_wait * WAIT_SAFETY_FACTOR
        if not min_wait or now + seconds <= deadline:
            return None
        self._rejected += 1
        return seconds if self._rejected % _PROBE_EVERY else None

    def on_admitted(self) -> None:
        """A call that was read has been admitted by its batcher."""
        self.lead_seconds *= _SHRINK

    def on_rejected(self, graphs: Collection[str], deadline: float) -> None:
        """A call that was read has been rejected by a batcher for one of these graphs."""
        now = self._clock()
        # Only if every other batcher would have rejected it too.
        if now + self._min_wait(graphs, now) * WAIT_SAFETY_FACTOR > deadline:
            self.lead_seconds = min(self.lead_seconds * _GROW + _MIN_LEAD_STEP, _MAX_LEAD)

    def _min_wait(self, graphs: Collection[str], now: float) -> float:
        """The shortest wait of the batchers in use for these graphs; 0.0: none is in use."""
        waits = (
            batcher.min_wait
            for model in self._repository.models()
            for batcher, _ in model.batchers()
            if batcher.name in graphs and now - batcher.last_batch_end < _ACTIVE_SECONDS
        )
        return min(waits, default=0.0)
