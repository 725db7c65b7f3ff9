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
                share of background rows. A batch of background rows alone is then short: the next
                interactive row may arrive while it runs

A batch holds rows of one shape. The first priority that waits chooses the shape: SMALL the one
whose first row waits longest, the others each shape in turn. A later priority that wants another
shape saves up its share of the batches until it may choose one batch. Rows of all priorities fill
a batch of their shape. Work is rows times their scale (what a row of the shape costs) times their
weight.

A request is refused because of the rows served before it, never because of those served after it:
however much large work waits, there is room for small requests.
"""

from __future__ import annotations

import math
from typing import Final

from latentd.batching.entries import (
    BACKGROUND,
    LARGE,
    PRIORITIES,
    SMALL,
    BatchItem,
    Entry,
    Priority,
)
from latentd.batching.shape_queues import MAX_SHAPES, ShapeQueue, ShapeQueues
from latentd.errors import DeadlineExceeded, Overloaded

MIN_SHARE: Final = {SMALL: 0.0, LARGE: 1 / 4, BACKGROUND: 1 / 16}
"""The share of the work that a priority keeps while it has rows waiting."""

INTERACTIVE_WINDOW_SECONDS: Final = 5.0
"""For so long after an interactive entry, the queue expects another one."""

WAIT_SAFETY_FACTOR: Final = 1.25
"""The predicted wait is multiplied by this: predictions err, and the response must still travel."""

MAX_QUEUE_SHARE: Final = {SMALL: 1.0, LARGE: 3 / 4, BACKGROUND: 1 / 2}
"""The share of the queue's bytes that may be in use after an entry of a priority is admitted."""

MAX_INTERLEAVED: Final = 4
"""How many large requests take turns; the others wait until one of them ends. If all took turns,
each new one would delay all before it, and under load all would end together and too late."""


class RowQueue:
    """The waiting entries of a batcher.

    batch_rows: the largest number of rows in one batch, if their scale is 1.
    max_rows: how many rows that are served before a request's last one may wait; a row counts as
    its scale. max_bytes: limit for all that waits. Beyond these, the queue raises
    Overloaded(queue_full). A request that would be next is always admitted. One of more than half
    of max_rows counts as half: otherwise it would never find room.
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
        self.rows = 0  # each counted by its scale
        self.bytes = 0
        self.batch_seconds = batch_seconds
        self._min_batch_seconds = batch_seconds  # the fastest full batch known
        self.dispatch_gap_seconds = 0.0
        self._shapes = ShapeQueues()
        self._shape_of = self._shapes.by_key
        self._rows = dict.fromkeys(PRIORITIES, 0)
        self._work = dict.fromkeys(PRIORITIES, 0)
        self._credit = dict.fromkeys(PRIORITIES, 0.0)  # unused work of its minimum share
        self._max_row_work = batch_rows  # what the heaviest waiting row may cost, or a full batch
        self._batches = 0
        self._last_size = batch_rows  # what the last batch cost, if several shapes waited
        self._last_interactive = -math.inf  # when the last interactive entry arrived

    def oldest(self) -> float | None:
        """When the oldest waiting entry arrived; None: nothing waits."""
        entries = (es for shape in self._shape_of.values() for es in shape.entries.values())
        return min((e.queued_at for es in entries for e in es if not e.done), default=None)

    def admit(self, entry: Entry, now: float) -> None:
        """Queue the entry, or raise what `check` raises."""
        self.check(entry, now)
        entry.queued_at = now
        if not entry.background:
            self._last_interactive = now
        priority, row_work = entry.priority, entry.row_work
        work = entry.rows * row_work
        shape = self._shape_of.get(entry.shape) or self._shapes.add(entry.shape)
        if not shape.work[priority]:
            shape.turn[priority] = self._batches
        shape.entries[priority].append(entry)
        shape.work[priority] += work
        if priority and row_work > self._max_row_work:  # a small one is no larger than a batch
            self._max_row_work = row_work
        rows = entry.rows * entry.scale
        self._rows[priority] += rows
        self._work[priority] += work
        self.rows += rows
        self.bytes += entry.bytes

    def check(self, entry: Entry, now: float) -> None:
        """Set the entry's priority, and raise Overloaded if the queue cannot admit it: one rule for
        one row or many. Raises DeadlineExceeded if even the fastest batches known could not run all
        of its rows in time."""
        scale = entry.scale
        rows, entry.row_work = entry.rows * scale, scale * entry.weight
        work = entry.rows * entry.row_work
        if entry.background:
            priority = BACKGROUND
        elif work <= self.batch_rows and entry.work * scale <= self.batch_rows:
            priority = SMALL
        else:
            priority = LARGE
        entry.priority = priority
        if rows > self.batch_rows and entry.rows > 1:
            seconds = rows / self.batch_rows * self._min_batch_seconds
            left = entry.deadline - now
            if seconds > left:
                raise DeadlineExceeded(
                    f"{entry.rows} rows take at least {seconds:.3f} s; the call has {left:.3f} s "
                    "left. The rows were not run."
                )
        rows_ahead = self._rows[SMALL]
        work += self._work[SMALL]
        if priority:  # a loop for small entries would be a tenth of their cost
            for earlier in PRIORITIES[1 : priority + 1]:
                rows_ahead += self._rows[earlier]
                work += self._work[earlier]
        # A lone request is never refused for the time it takes itself.
        wait = self._wait(work) if self.rows else 0.0
        if (rows_ahead and rows_ahead + min(rows, self.max_rows // 2) > self.max_rows) or (
            self.bytes and self.bytes + entry.bytes > MAX_QUEUE_SHARE[priority] * self.max_bytes
        ):
            each = f" (each counts as {scale})" if scale > 1 else ""
            raise Overloaded(
                "queue_full",
                f"Queue full: {self.rows} rows queued, {entry.rows} more{each} do not fit",
                max(wait / 2, 0.01),
            )
        if len(self._shape_of) >= MAX_SHAPES and not self._shapes.has_room(entry.shape):
            raise Overloaded(
                "shapes",
                f"Rows of {MAX_SHAPES} other shapes wait, and no more shapes can wait",
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
        return self._wait(self._work[SMALL] + 1) if self.rows else 0.0

    def _wait(self, work: int) -> float:
        """Seconds until the last of so many rows of scale and weight 1 leaves the engine.

        Counts one batch more, the one that runs now. A result that is just too late costs as much
        as one in time: a queue that admits rows up to the last moment computes only late results.
        """
        return (work / self.batch_rows + 1) * (self.batch_seconds + self.dispatch_gap_seconds)

    @property
    def next_seconds(self) -> float:
        """How long a batch of the waiting rows would take, at most."""
        return (
            min(sum(self._work.values()), self._max_row_work) / self.batch_rows * self.batch_seconds
        )

    @property
    def full_batch_waits(self) -> bool:
        """Whether the waiting rows of one shape fill a batch."""
        if self.rows < self.batch_rows or self._shapes.only:
            return self.rows >= self.batch_rows
        return any(sum(shape.work.values()) >= self.batch_rows for shape in self._shape_of.values())

    def observe(self, work: int, seconds: float) -> None:
        """Learn how long a full batch takes from a run of so much work."""
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
        if rows := entry.rows_waiting:
            self._remove(self._shape_of[entry.shape], entry, rows)
        return True

    def next_batch(self, now: float) -> tuple[list[BatchItem], list[Entry]]:
        """The next batch, and the entries that were found expired (now done).

        The batch holds rows of one shape: work of at most batch_rows, or a single row. It is empty
        only when nothing waits.
        """
        batch: list[BatchItem] = []
        expired: list[Entry] = []
        self._batches += 1
        while self.rows and not batch:
            if self._shapes.only is None:
                self._shapes.drop_empty()
            if self._shapes.only is None:
                self._fill_from_several(now, batch, expired)
            else:
                self._add_credit()
                saved = {priority: int(credit) for priority, credit in self._credit.items()}
                taken = self._fill(self._shapes.only, saved, now, batch, expired)
                for priority, work in taken.items():
                    self._spend(priority, work)
        return batch, expired

    def _add_credit(self) -> None:
        """Add to each priority's credit its share of the next batch; all rows have one shape."""
        before = 0  # work of the earlier priorities: it leaves no room only if it fills a batch
        for priority, share in MIN_SHARE.items():
            # 1/16 of a 4-row batch is less than a row: the unused shares of batches add up.
            credit = self._credit[priority] + share * min(before, self.batch_rows)
            self._credit[priority] = min(credit, self._work[priority])
            before += self._work[priority]

    def _spend(self, priority: Priority, work: float) -> float:
        """Take work from a priority's credit; returns how much of it the credit covered."""
        spent = min(self._credit[priority], work)
        self._credit[priority] -= spent
        return spent

    def _fill_from_several(self, now: float, batch: list[BatchItem], expired: list[Entry]) -> None:
        """Choose one of several shapes, and fill the batch with its rows.

        A priority's credit is for its next shape. Rows of its other shapes only fill up a batch, at
        no cost: otherwise they could use up the credit for ever, and the next shape would starve.
        """
        chooser = first = next(priority for priority in PRIORITIES if self._work[priority])
        next_shapes: dict[Priority, ShapeQueue] = {}
        can_save: dict[Priority, int] = {}
        for priority, share in MIN_SHARE.items():
            if not self._work[priority]:
                self._credit[priority] = 0.0
                continue
            shape = next_shapes[priority] = self._shapes.next(priority)
            row_work = shape.head(priority).row_work
            # A batch costs its chooser all work that no other credit pays for. With less credit
            # than for a full batch, a few single rows could choose every batch.
            full = max(self.batch_rows, row_work)
            # One batch more: with less, it would lose some while others choose before it.
            credit = min(self._credit[priority], 2 * full)
            if priority is not first:
                credit += share * self._last_size
                if chooser is first and credit >= full and shape is not next_shapes[first]:
                    chooser = priority
            self._credit[priority] = credit
            can_save[priority] = int(credit) if credit >= row_work else 0
        shape = next_shapes[chooser]
        saved = {
            p: min(can_save[p], shape.work[p]) if next_shapes.get(p) is shape else 0
            for p in PRIORITIES
        }
        taken = self._fill(shape, saved, now, batch, expired)
        if not batch:
            return
        # A batch of less work than a short one takes about as long as a short one.
        self._last_size = max(sum(taken.values()), self.background_batch_rows)
        cost: float = self._last_size
        for priority, own in next_shapes.items():
            if priority in taken or priority is chooser:
                shape.turn[priority] = self._batches
            if own is shape and priority is not chooser:
                cost -= self._spend(priority, taken.get(priority, 0))
        self._spend(chooser, cost)

    def _fill(
        self,
        shape: ShapeQueue,
        saved: dict[Priority, int],
        now: float,
        batch: list[BatchItem],
        expired: list[Entry],
    ) -> dict[Priority, int]:
        """Add rows of the shape to an empty batch. Returns the work of each priority's rows.

        saved: what each priority has as credit for rows of this shape
        """
        taken: dict[Priority, int] = {}
        room, reserved = self.batch_rows, sum(saved.values())
        for priority in PRIORITIES:
            reserved -= saved[priority]
            entries = shape.entries[priority]
            if not entries:
                continue
            allowed = max(room - reserved, 0)
            if priority is BACKGROUND and now - self._last_interactive < INTERACTIVE_WINDOW_SECONDS:
                # An interactive row must not wait for background rows that fill up its batch.
                allowed = min(allowed, saved[priority] if batch else self.background_batch_rows)
            if work := self._take(shape, priority, allowed, now, batch, expired):
                taken[priority] = work
                room -= work
        return taken

    def _take(
        self,
        shape: ShapeQueue,
        priority: Priority,
        room: int,
        now: float,
        batch: list[BatchItem],
        expired: list[Entry],
    ) -> int:
        """Add rows of one priority whose work is up to `room` to the batch; to an empty batch at
        least one row. Returns their work."""
        entries, taken = shape.entries[priority], 0
        for _ in range(len(entries)):
            if taken >= room:
                break
            entry = entries[0]
            if entry.deadline <= now and self.discard(entry):
                expired.append(entry)
            if entry.done:
                entries.popleft()
                continue
            rows = min(entry.rows_waiting, (room - taken) // entry.row_work or int(not batch))
            if not rows:
                break
            stop = entry.rows_taken + rows
            batch.append(BatchItem(entry, entry.payload, entry.rows_taken, stop))
            self._remove(shape, entry, rows)
            entry.rows_taken = stop
            taken += rows * entry.row_work
            if not entry.rows_waiting:
                entries.popleft()
            elif priority is not SMALL:  # a small one stays first: its next batch ends it
                entries.popleft()
                entries.insert(MAX_INTERLEAVED - 1, entry)
        return taken

    def _remove(self, shape: ShapeQueue, entry: Entry, rows: int) -> None:
        priority, work = entry.priority, rows * entry.row_work
        shape.work[priority] -= work
        self._work[priority] -= work
        if rows == entry.rows_waiting:
            self.bytes -= entry.bytes
        rows *= entry.scale
        self._rows[priority] -= rows
        self.rows -= rows
        if not self.rows:
            self._max_row_work = self.batch_rows
