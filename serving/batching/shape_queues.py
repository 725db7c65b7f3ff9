"""The waiting entries of a queue by shape, and which shape is a priority's next.

A fixed model has one shape. It is `only`, so that its queue neither searches nor chooses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Final

from latentd.batching.entries import PRIORITIES, SMALL, Entry, Priority

MAX_SHAPES: Final = 32
"""How many different shapes may wait at once: each may cost the others' rows a batch."""


class ShapeQueue:
    """The waiting entries of one shape, by priority."""

    __slots__ = ("entries", "turn", "work")

    def __init__(self) -> None:
        self.entries: dict[Priority, deque[Entry]] = {p: deque() for p in PRIORITIES}
        self.work = dict.fromkeys(PRIORITIES, 0)
        # The number of the last batch with rows of it, or of the last batch before it had work.
        self.turn = dict.fromkeys(PRIORITIES, 0)

    def head(self, priority: Priority) -> Entry:
        """The first entry of a priority that has work."""
        entries = self.entries[priority]
        while entries[0].done:
            entries.popleft()
        return entries[0]


class ShapeQueues:
    """The shapes that wait. One without work stays until another shape arrives, or is chosen."""

    def __init__(self) -> None:
        self.by_key: Final[dict[Hashable, ShapeQueue]] = {}
        self.only: ShapeQueue | None = None  # if there is just one

    def add(self, key: Hashable) -> ShapeQueue:
        """A new shape that has no entries yet."""
        self.drop_empty()
        self.by_key[key] = shape = ShapeQueue()
        self._update_only()
        return shape

    def drop_empty(self) -> None:
        """Forget the shapes without work."""
        for key in [k for k, shape in self.by_key.items() if not any(shape.work.values())]:
            del self.by_key[key]
        self._update_only()

    def has_room(self, key: Hashable) -> bool:
        """Whether an entry of this shape may wait."""
        if len(self.by_key) >= MAX_SHAPES:
            self.drop_empty()
        return len(self.by_key) < MAX_SHAPES or key in self.by_key

    def next(self, priority: Priority) -> ShapeQueue:
        """The shape whose rows of this priority come next; the priority must have work.

        SMALL: the shape whose first entry waits longest. Otherwise the one that was served longest
        ago, or has waited for so many batches since it had no work.
        """
        waiting = [shape for shape in self.by_key.values() if shape.work[priority]]
        if priority is SMALL:
            return min(waiting, key=lambda shape: shape.head(priority).queued_at)
        return min(
            waiting, key=lambda shape: (shape.turn[priority], shape.head(priority).queued_at)
        )

    def _update_only(self) -> None:
        self.only = next(iter(self.by_key.values())) if len(self.by_key) == 1 else None
