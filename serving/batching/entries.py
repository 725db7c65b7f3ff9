"""What waits in a queue, and what a batch holds: requests' rows."""

from __future__ import annotations

import enum
import math
from collections.abc import Hashable
from typing import Any, Final


class Priority(enum.IntEnum):
    """Order of service; `rowqueue` has the rules."""

    SMALL = 0
    LARGE = 1
    BACKGROUND = 2


PRIORITIES: Final = tuple(Priority)
SMALL, LARGE, BACKGROUND = PRIORITIES  # to read an enum's attribute takes ten times as long


class Entry:
    """One request's rows in one batcher.

    payload:    the run function makes rows of it; opaque here
    bytes:      memory that its payload takes while it waits
    deadline:   seconds on the queue's clock; math.inf: none
    work:       rows of the whole call, as far as known, if this is a part of a stream
    weight:     each row costs a run as much as so many others, at most batch_rows
    shape:      a batch holds rows of one shape only
    scale:      what one row of this shape costs, in rows of the cheapest shape
    keep_outputs: False: the payload has taken the outputs it needs
    future:     receives the outputs; opaque here
    stats:      records the times; opaque here
    started_at: when the first batch with rows of it started
    rows_waiting: rows not yet given to a batch
    rows_taken: rows given to batches so far
    rows_run:   rows whose batches have ended
    parts:      first row of a batch, its outputs; if there are several batches
    done:       answered, cancelled or expired: none of its rows may run any more
    row_work:   scale times weight; the queue sets it, as it sets the priority
    """

    __slots__ = (
        *("payload", "rows", "bytes", "deadline", "background", "work", "weight", "shape", "scale"),
        *("keep_outputs", "future", "stats", "queued_at", "started_at", "rows_waiting"),
        *("rows_taken", "rows_run", "parts", "done", "priority", "row_work"),
    )

    def __init__(
        self,
        payload: Any,
        rows: int,
        nbytes: int,
        deadline: float,
        background: bool,
        work: int = 0,
        weight: int = 1,
        shape: Hashable = (),
        scale: int = 1,
        keep_outputs: bool = True,
    ) -> None:
        # One is made for each call: a dataclass with as many fields takes three times as long.
        self.payload, self.rows, self.bytes = payload, rows, nbytes
        self.deadline, self.background, self.work = deadline, background, work
        self.weight, self.shape, self.scale = weight, shape, scale
        self.keep_outputs = keep_outputs
        self.future: Any = None
        self.stats: Any = None
        self.queued_at = self.started_at = 0.0
        self.rows_waiting, self.rows_taken, self.rows_run = rows, 0, 0
        self.parts: list[tuple[int, Any]] = []
        self.done = False
        self.priority, self.row_work = SMALL, 1


class BatchItem:
    """Rows start..stop of an entry, as a part of one batch.

    payload: the entry's; the entry drops it as soon as it is done
    """

    __slots__ = ("entry", "payload", "rows", "start", "stop")

    def __init__(self, entry: Entry, payload: Any, start: int, stop: int) -> None:
        self.entry, self.payload = entry, payload
        self.start, self.stop, self.rows = start, stop, stop - start


def single_item_batch(payload: Any, rows: int) -> list[BatchItem]:
    """A batch of one payload without a future: to run a graph without a queue."""
    entry = Entry(payload, rows, 0, math.inf, background=True)
    return [BatchItem(entry, payload, 0, rows)]
