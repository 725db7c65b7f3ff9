"""Refusal before a call is read.

Where rows are cheap to run, receiving a call is most of its cost. Under overload a server that
reads each call in order to refuse it has little left for the calls it could answer. So a call that
its first lane would not admit is refused by its deadline alone, by the lane's own prediction.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from latentd.batching.rowqueue import WAIT_SAFETY_FACTOR
from latentd.models.repository import Repository

_RECENT: Final = 1.0  # seconds since its last batch for which a lane counts as asked for
_ONE_IN: Final = 16
"""Of the calls to be refused, one in so many is read after all: it may want a lane that is free and
was not asked for lately, another model's for one. Once that lane has run, it counts, and nobody is
refused."""
_LEAST_LEAD: Final = 0.0005  # seconds
_MOST_LEAD: Final = 0.1
_GROW: Final = 1.1
_SHRINK: Final = 0.99
"""So that of the calls read under overload about one in ten is read in vain."""


class AdmissionController:
    """Who need not be read.

    lead: seconds by which the door refuses sooner than a lane would, for a call that is read has
          less time left when it gets there. Learned from those that were read in vain.
    """

    def __init__(self, repository: Repository, clock: Callable[[], float] = time.monotonic) -> None:
        self._repository, self._clock = repository, clock
        self._refused = 0
        self.lead = 0.0

    def wait(self, graph: str, deadline: float) -> float | None:
        """Seconds that a call would wait in the least busy lane of that name, whatever it asks for,
        if that is beyond its deadline; None: read it."""
        now = self._clock()
        least = self._least_wait(graph, now)
        seconds = self.lead + least * WAIT_SAFETY_FACTOR
        if not least or now + seconds <= deadline:
            return None
        self._refused += 1
        return seconds if self._refused % _ONE_IN else None

    def on_admitted(self) -> None:
        """A call that was read has been admitted."""
        self.lead *= _SHRINK

    def on_rejected(self, graph: str, deadline: float) -> None:
        """A call that was read has been refused by a lane of that name."""
        now = self._clock()
        if (
            now + self._least_wait(graph, now) * WAIT_SAFETY_FACTOR > deadline
        ):  # and any other would have been
            self.lead = min(self.lead * _GROW + _LEAST_LEAD, _MOST_LEAD)

    def _least_wait(self, name: str, now: float) -> float:
        """The shortest wait in the lanes of that name which are in use; 0.0: none is."""
        waits = (
            graph.min_wait
            for model in self._repository.models()
            for graph, _ in model.batchers()
            if graph.name == name and now - graph.last_batch_end < _RECENT
        )
        return min(waits, default=0.0)
