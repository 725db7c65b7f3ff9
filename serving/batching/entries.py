"""What waits in a queue, and what a batch holds: requests' rows."""

from __future__ import annotations

import enum
import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Final


class Priority(enum.IntEnum):
    """Order of service; `rowqueue` has the rules."""

    SMALL = 0
    LARGE = 1
    BACKGROUND = 2


PRIORITIES: Final = tuple(Priority)
SMALL, LARGE, BACKGROUND = PRIORITIES  # to read an enum's attribute takes ten times as long


@dataclass(slots=True, eq=False)
class Entry:
    """One request's rows in one batcher."""

    payload: Any  # the run function makes rows of it; opaque here
    rows: int
    bytes: int  # memory that its payload takes while it waits
    deadline: float  # seconds on the queue's clock; math.inf: none
    background: bool
    future: Any = None  # receives the outputs; opaque here
    stats: Any = None  # records the times; opaque here
    work: int = 0  # rows of the whole call, as far as known, if this is a part of a stream
    weight: int = 1  # each row costs a run as much as so many others, at most batch_rows
    shape: Hashable = ()  # a batch holds rows of one shape only
    scale: int = 1  # what one row of this shape costs, in rows of the cheapest shape
    keep_outputs: bool = True  # False: the payload has taken the outputs it needs
    queued_at: float = 0.0
    started_at: float = 0.0  # when the first batch with rows of it started
    rows_taken: int = 0  # rows given to batches so far
    rows_run: int = 0  # rows whose batches have ended
    parts: list[tuple[int, Any]] = field(default_factory=list)  # first row of a batch, its outputs
    done: bool = False  # answered, cancelled or expired: none of its rows may run any more
    priority: Priority = Priority.SMALL
    row_work: int = 1  # scale times weight; the queue sets it

    @property
    def rows_waiting(self) -> int:
        """Rows not yet given to a batch."""
        return self.rows - self.rows_taken


@dataclass(slots=True)  # not frozen: one is made for every row served alone, and that is slow
class BatchItem:
    """Rows start..stop of an entry, as a part of one batch."""

    entry: Entry
    payload: Any  # the entry's; the entry drops it as soon as it is done
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


def single_item_batch(payload: Any, rows: int) -> list[BatchItem]:
    """A batch of one payload without a future: to run a graph without a queue."""
    entry = Entry(payload, rows, 0, math.inf, background=True)
    return [BatchItem(entry, payload, 0, rows)]
