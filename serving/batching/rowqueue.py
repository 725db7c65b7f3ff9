"""Which rows run next: the waiting rows of one batcher, and the rules of fairness and refusal.

Pure bookkeeping on a clock that is passed in: no threads, no futures, no arrays. `batcher.Batcher`
wraps it in a lock; the simulations in the tests drive it on a virtual clock.

Rows wait with one of three priorities. The queue serves them in this order, and each leaves the
later ones a minimum share:

    SMALL       interactive, the whole call fits into one batch: first come, first served; nothing
                larger ever overtakes it
    LARGE       interactive, a call of more than one batch: takes the remaining room; large calls
                take turns
    BACKGROUND  the client set low priority: fills the rest of the room; background calls take
                turns. While interactive rows arrive, a batch that holds them has only the minimum
                share of background rows, and a batch of background rows alone is short: the next
                interactive row may arrive while it runs

A request is refused because of the rows served before it, never because of those served after it:
however much large work waits, there is room for small requests.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from latentd.errors import DeadlineExceeded, Overloaded


class Priority(enum.IntEnum):
    """Order of service; see the module's docstring."""

    SMALL = 0
    LARGE = 1
    BACKGROUND = 2


PRIORITIES: Final = tuple(Priority)
MIN_SHARE: Final = {Priority.SMALL: 0.0, Priority.LARGE: 1 / 4, Priority.BACKGROUND: 1 / 16}
"""The share of the rows run that a priority keeps while it has rows waiting."""

INTERACTIVE_WINDOW_SECONDS: Final = 5.0
"""For so long after an interactive entry, the queue expects another one."""

WAIT_SAFETY_FACTOR: Final = 1.25
"""The predicted wait is multiplied by this: predictions err, and the response must still travel."""

MAX_QUEUE_SHARE: Final = {Priority.SMALL: 1.0, Priority.LARGE: 3 / 4, Priority.BACKGROUND: 1 / 2}
"""The share of the queue's bytes that may be in use after an entry of a priority is admitted."""

MAX_INTERLEAVED: Final = 4
"""How many large requests take turns; the others wait until one of them ends. If all took turns,
each new one would delay all before it, and under load all would end together and too late."""


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
    keep_outputs: bool = True  # False: the payload has taken the outputs it needs
    queued_at: float = 0.0
    started_at: float = 0.0  # when the first batch with rows of it started
    rows_taken: int = 0  # rows given to batches so far
    rows_run: int = 0  # rows whose batches have ended
    parts: list[tuple[int, Any]] = field(default_factory=list)  # first row of a batch, its outputs
    done: bool = False  # answered, cancelled or expired: none of its rows may run any more
    priority: Priority = Priority.SMALL

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


class RowQueue:
    """The waiting entries of a batcher.

    batch_rows: the largest number of rows in one batch.
    max_rows: how many rows that are served before a request's last one may wait. max_bytes: limit
    for all that waits. Beyond these, the queue raises Overloaded(queue_full). A request that would
    be next is always admitted. One of more than half of max_rows counts as half: otherwise it would
    never find room.
    batch_seconds: how long a full batch takes, at first; then learned from the runs.
    background_batch_rows: the largest batch that is short; 0: batch_rows.
    dispatch_gap_seconds: how long rows wait while no batch runs; learned. If receiving calls costs
    more than running them, this is most of the wait.
    """

    def __init__(
        self,
        batch_rows: int,
        max_rows: int,
        max_bytes: int,
        batch_seconds: float = 0.0,
        background_batch_rows: int = 0,
    ) -> None:
        self.batch_rows = batch_rows
        self.background_batch_rows = background_batch_rows or batch_rows
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        self.rows = 0
        self.bytes = 0
        self.batch_seconds = batch_seconds
        self._min_batch_seconds = batch_seconds  # the fastest full batch known
        self.dispatch_gap_seconds = 0.0
        self._entries: dict[Priority, deque[Entry]] = {p: deque() for p in PRIORITIES}
        self._rows = dict.fromkeys(PRIORITIES, 0)
        self._work = dict.fromkeys(PRIORITIES, 0)  # rows times their weights
        self._credit = dict.fromkeys(PRIORITIES, 0.0)  # unused work of its minimum share
        self._last_interactive = -math.inf  # when the last interactive entry arrived

    def oldest(self) -> float | None:
        """When the oldest waiting entry arrived; None: nothing waits."""
        waiting = (e.queued_at for es in self._entries.values() for e in es if not e.done)
        return min(waiting, default=None)

    def admit(self, entry: Entry, now: float) -> None:
        """Queue the entry, or raise what `check` raises."""
        self.check(entry, now)
        entry.queued_at = now
        if not entry.background:
            self._last_interactive = now
        self._entries[entry.priority].append(entry)
        self._rows[entry.priority] += entry.rows
        self._work[entry.priority] += entry.rows * entry.weight
        self.rows += entry.rows
        self.bytes += entry.bytes

    def check(self, entry: Entry, now: float) -> None:
        """Set the entry's priority, and raise Overloaded if the queue cannot admit it: one rule for
        one row or many. Raises DeadlineExceeded if even the fastest batches known could not run all
        of its rows in time."""
        work = entry.rows * entry.weight
        if entry.background:
            entry.priority = Priority.BACKGROUND
        elif work <= self.batch_rows and entry.work <= self.batch_rows:
            entry.priority = Priority.SMALL
        else:
            entry.priority = Priority.LARGE
        if entry.rows > self.batch_rows:
            seconds = entry.rows / self.batch_rows * self._min_batch_seconds
            left = entry.deadline - now
            if seconds > left:
                raise DeadlineExceeded(
                    f"{entry.rows} rows take at least {seconds:.3f} s; the call has {left:.3f} s "
                    "left. The rows were not run."
                )
        rows_ahead = 0
        for priority in PRIORITIES:
            rows_ahead += self._rows[priority]
            work += self._work[priority]
            if priority is entry.priority:
                break
        # A lone request is never refused for the time it takes itself.
        wait = self._wait(work) if self.rows else 0.0
        if (rows_ahead and rows_ahead + min(entry.rows, self.max_rows // 2) > self.max_rows) or (
            self.bytes
            and self.bytes + entry.bytes > MAX_QUEUE_SHARE[entry.priority] * self.max_bytes
        ):
            raise Overloaded(
                "queue_full",
                f"Queue full: {self.rows} rows queued, {entry.rows} more do not fit",
                max(wait / 2, 0.01),
            )
        if now + wait * WAIT_SAFETY_FACTOR > entry.deadline:
            left = entry.deadline - now
            raise Overloaded(
                "deadline",
                f"Estimated wait {wait:.3f} s exceeds the {left:.3f} s that the call has left",
                max(wait - left, 0.01),
            )

    @property
    def min_wait(self) -> float:
        """Seconds that any request would wait at least: one small row's predicted wait."""
        return self._wait(self._work[Priority.SMALL] + 1) if self.rows else 0.0

    def _wait(self, work: int) -> float:
        """Seconds until the last of so many rows of weight 1 leaves the engine.

        Counts one batch more, the one that runs now. A result that is just too late costs as much
        as one in time: a queue that admits rows up to the last moment computes only late results.
        """
        return (work / self.batch_rows + 1) * (self.batch_seconds + self.dispatch_gap_seconds)

    @property
    def next_seconds(self) -> float:
        """How long a batch of the waiting rows would take."""
        return min(sum(self._work.values()) / self.batch_rows, 1.0) * self.batch_seconds

    def observe(self, work: int, seconds: float) -> None:
        """Learn how long a full batch takes from a run of so many rows of weight 1."""
        if work * 2 < self.batch_rows and self.batch_seconds:
            return  # mostly fixed cost: shows little about a full batch
        full = seconds * self.batch_rows / work
        self._min_batch_seconds = min(self._min_batch_seconds, full)
        self.batch_seconds += (full - self.batch_seconds) * (0.2 if self.batch_seconds else 1.0)

    def observe_dispatch_gap(self, seconds: float) -> None:
        """Learn from the time that the rows of a new batch had waited while no batch ran."""
        self.dispatch_gap_seconds += (seconds - self.dispatch_gap_seconds) * 0.2

    def discard(self, entry: Entry) -> bool:
        """Mark the entry done: its waiting rows never run. Returns False if it was done already.

        Needs no search: the entry stays in its deque without rows, and `next_batch` skips it.
        """
        if entry.done:
            return False
        entry.done = True
        entry.payload = None
        self._remove(entry, entry.rows_waiting)
        return True

    def next_batch(self, now: float) -> tuple[list[BatchItem], list[Entry]]:
        """The next batch, and the entries that were found expired (now done).

        The batch has at most batch_rows rows, and is empty only when nothing waits.
        """
        expired: list[Entry] = []
        before = 0  # work of the earlier priorities: it leaves no room only if it fills a batch
        for priority, share in MIN_SHARE.items():
            # 1/16 of a 4-row batch is less than a row: the unused shares of batches add up.
            credit = self._credit[priority] + share * min(before, self.batch_rows)
            self._credit[priority] = min(credit, self._work[priority])
            before += self._work[priority]
        batch: list[BatchItem] = []
        room = self.batch_rows
        for priority in PRIORITIES:
            reserved = sum(int(self._credit[later]) for later in PRIORITIES if later > priority)
            allowed = max(room - reserved, 0)
            if (
                priority is Priority.BACKGROUND
                and now - self._last_interactive < INTERACTIVE_WINDOW_SECONDS
            ):
                # An interactive row must not wait for background rows that fill up its batch.
                allowed = min(
                    allowed, int(self._credit[priority]) if batch else self.background_batch_rows
                )
            taken = self._take(priority, allowed, now, batch, expired)
            self._credit[priority] = max(self._credit[priority] - taken, 0.0)
            room -= taken
        return batch, expired

    def _take(
        self,
        priority: Priority,
        room: int,
        now: float,
        batch: list[BatchItem],
        expired: list[Entry],
    ) -> int:
        """Add rows of one priority that weigh up to `room` to the batch; to an empty batch at least
        one row. Returns what they weigh."""
        entries, taken = self._entries[priority], 0
        for _ in range(len(entries)):
            if taken >= room:
                break
            entry = entries[0]
            if entry.deadline <= now and self.discard(entry):
                expired.append(entry)
            if entry.done:
                entries.popleft()
                continue
            rows = min(entry.rows_waiting, (room - taken) // entry.weight or int(not batch))
            if not rows:
                break
            stop = entry.rows_taken + rows
            batch.append(BatchItem(entry, entry.payload, entry.rows_taken, stop))
            self._remove(entry, rows)
            entry.rows_taken = stop
            taken += rows * entry.weight
            if not entry.rows_waiting:
                entries.popleft()
            elif priority is not Priority.SMALL:  # a small one stays first: its next batch ends it
                entries.popleft()
                entries.insert(MAX_INTERLEAVED - 1, entry)
        return taken

    def _remove(self, entry: Entry, rows: int) -> None:
        self._rows[entry.priority] -= rows
        self._work[entry.priority] -= rows * entry.weight
        self.rows -= rows
        if rows and rows == entry.rows_waiting:
            self.bytes -= entry.bytes
