"""Which rows run next: the waiting rows of one lane, and the rules of fairness and refusal.

Pure bookkeeping on a clock that is passed in: no threads, no futures, no arrays. `lane.Lane`
wraps it in a lock; the simulations in the tests drive it on a virtual clock.

Rows wait in three classes, served in this order, each leaving the later ones their floor:

    SMALL       interactive, the whole call fits into one batch: first come, first served, never
                overtaken by anything that does not
    LARGE       interactive, a call of more than one batch: takes what room is left, in turns
    BACKGROUND  said to be patient: fills what the others leave, in turns. While interactive rows
                come it has no more than its floor beside them, and else short batches, for the next
                of them may come in the middle of one

Rows are refused for what is served before them, never for what is served after them: however much
large work waits, there is room for small requests.
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


CLASSES: Final = tuple(Priority)
MIN_SHARE: Final = {Priority.SMALL: 0.0, Priority.LARGE: 1 / 4, Priority.BACKGROUND: 1 / 16}
"""The share of the rows run that a class keeps while it has rows waiting."""

INTERACTIVE_WINDOW_SECONDS: Final = 5.0
"""After an interactive entry it is to be expected that another comes."""

WAIT_SAFETY_FACTOR: Final = 1.25
"""Of the predicted wait: predictions err, and the answer must still travel."""

ROOM: Final = {Priority.SMALL: 1.0, Priority.LARGE: 3 / 4, Priority.BACKGROUND: 1 / 2}
"""The share of the queue's bytes that may be taken once an entry of a class has been admitted."""

MAX_INTERLEAVED: Final = 4
"""How many large requests take turns; the others wait for one of them to end. If all took turns,
each new one would delay all before it, and under load all would end together and too late."""


@dataclass(slots=True, eq=False)
class Entry:
    """One request's rows in one lane."""

    payload: Any  # what the lane's run function makes rows of; opaque here
    rows: int
    bytes: int  # of memory its payload holds while it waits
    deadline: float  # seconds on the queue's clock; math.inf: none
    background: bool
    reply: Any = None  # where the answer goes; opaque here
    stats: Any = None  # where its way is entered; opaque here
    work: int = 0  # rows of the whole call, as far as known, where this is a part of a stream
    weight: int = 1  # each of its rows costs a run as much as so many others, batch_rows at most
    keeps_outputs: bool = True  # False: the payload has taken what is wanted of them
    enqueued_at: float = 0.0
    began: float = 0.0  # when the first batch that took rows of it was begun
    taken: int = 0  # rows given to batches so far
    run: int = 0  # rows whose batches are done
    parts: list[tuple[int, Any]] = field(default_factory=list)  # first row of a batch, its outputs
    dead: bool = False  # answered, cancelled or expired: nothing of it is to be run any more
    kind: Priority = Priority.SMALL

    @property
    def waiting(self) -> int:
        """Rows not yet given to a batch."""
        return self.rows - self.taken


@dataclass(slots=True)  # not frozen: one is made for every row served alone, and that is slow
class BatchItem:
    """Rows start..stop of an entry, taken into one batch."""

    entry: Entry
    payload: Any  # the entry's, which lets go of it as soon as it is answered
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


def single_item_batch(payload: Any, rows: int) -> list[BatchItem]:
    """A batch of one payload, which nobody waits for: to run a graph without a queue."""
    entry = Entry(payload, rows, 0, math.inf, background=True)
    return [BatchItem(entry, payload, 0, rows)]


class RowQueue:
    """The waiting entries of a lane.

    batch_rows: the most rows one batch takes.
    max_rows: how many rows may wait that are served before a request's last one; max_bytes: of all
    that waits. More is refused with Overloaded(queue_full). A request that would be next is always
    admitted, and one of more than half of max_rows counts as half: else it would never find room.
    batch_seconds: how long a full batch takes, to begin with; then learned from the runs.
    short_rows: the most rows of a batch that is soon over; 0: batch_rows.
    pause_seconds: how long rows wait while no batch runs, learned: where calls are cheap to run and
    dear to receive, this is most of the wait.
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
        self._fastest = batch_seconds  # of the full batches known
        self.dispatch_gap_seconds = 0.0
        self._classes: dict[Priority, deque[Entry]] = {kind: deque() for kind in CLASSES}
        self._rows = dict.fromkeys(CLASSES, 0)
        self._work = dict.fromkeys(CLASSES, 0)  # rows times what they weigh
        self._credit = dict.fromkeys(CLASSES, 0.0)  # work of its floor a class has not used yet
        self._heard = -math.inf  # when the last interactive entry came

    def oldest(self) -> float | None:
        """When the entry that has waited longest came in; None: nothing waits."""
        waiting = (e.enqueued_at for es in self._classes.values() for e in es if not e.dead)
        return min(waiting, default=None)

    def admit(self, entry: Entry, now: float) -> None:
        """Take the entry in, or raise what `check` raises."""
        self.check(entry, now)
        entry.enqueued_at = now
        if not entry.background:
            self._heard = now
        self._classes[entry.kind].append(entry)
        self._rows[entry.kind] += entry.rows
        self._work[entry.kind] += entry.rows * entry.weight
        self.rows += entry.rows
        self.bytes += entry.bytes

    def check(self, entry: Entry, now: float) -> None:
        """Find the entry's class, and raise Overloaded where it cannot be admitted: the one rule
        for one row or many. Raises DeadlineExceeded where all its rows could not be run in time by
        the fastest batches known."""
        work = entry.rows * entry.weight
        if entry.background:
            entry.kind = Priority.BACKGROUND
        elif work <= self.batch_rows and entry.work <= self.batch_rows:
            entry.kind = Priority.SMALL
        else:
            entry.kind = Priority.LARGE
        if entry.rows > self.batch_rows:
            takes, left = entry.rows / self.batch_rows * self._fastest, entry.deadline - now
            if takes > left:
                raise DeadlineExceeded(
                    f"{entry.rows} rows take {takes:.3f} s at least and this call has {left:.3f} s "
                    "left. They were not run."
                )
        ahead = 0
        for kind in CLASSES:
            ahead += self._rows[kind]
            work += self._work[kind]
            if kind is entry.kind:
                break
        # A lone request is never refused for the time it takes itself.
        wait = self._wait(work) if self.rows else 0.0
        if (ahead and ahead + min(entry.rows, self.max_rows // 2) > self.max_rows) or (
            self.bytes and self.bytes + entry.bytes > ROOM[entry.kind] * self.max_bytes
        ):
            raise Overloaded(
                "queue_full",
                f"The queue is full: {self.rows} rows wait and {entry.rows} more do not fit",
                max(wait / 2, 0.01),
            )
        if now + wait * WAIT_SAFETY_FACTOR > entry.deadline:
            left = entry.deadline - now
            raise Overloaded(
                "deadline",
                f"The wait would be about {wait:.3f} s and this call has {left:.3f} s left",
                max(wait - left, 0.01),
            )

    @property
    def min_wait(self) -> float:
        """Seconds that any request would wait at least: one small row's predicted wait."""
        return self._wait(self._work[Priority.SMALL] + 1) if self.rows else 0.0

    def _wait(self, work: int) -> float:
        """Seconds until the last of so many rows of weight 1 leaves the engine.

        Counts one batch more, the one that runs now: an answer just too late costs as much to make
        as one in time, and a queue that admits to the edge of patience makes only such.
        """
        return (work / self.batch_rows + 1) * (self.batch_seconds + self.dispatch_gap_seconds)

    @property
    def next_seconds(self) -> float:
        """How long a batch of what waits now would take."""
        return min(sum(self._work.values()) / self.batch_rows, 1.0) * self.batch_seconds

    def observe(self, work: int, seconds: float) -> None:
        """Learn how long a full batch takes from a run of so many rows of weight 1."""
        if work * 2 < self.batch_rows and self.batch_seconds:
            return  # mostly fixed cost: says little about a full batch
        full = seconds * self.batch_rows / work
        self._fastest = min(self._fastest, full)
        self.batch_seconds += (full - self.batch_seconds) * (0.2 if self.batch_seconds else 1.0)

    def observe_dispatch_gap(self, seconds: float) -> None:
        """Learn from the time that rows just taken had waited while no batch ran."""
        self.dispatch_gap_seconds += (seconds - self.dispatch_gap_seconds) * 0.2

    def discard(self, entry: Entry) -> bool:
        """Never run what still waits of this entry. False: it was dead already.

        Costs no search: the entry stays in its line without rows and is skipped there.
        """
        if entry.dead:
            return False
        entry.dead = True
        entry.payload = None
        self._leave(entry, entry.waiting)
        return True

    def take(self, now: float) -> tuple[list[BatchItem], list[Entry]]:
        """The next batch, and the entries found expired on the way (now dead).

        The batch has at most batch_rows rows and is empty only when nothing waits.
        """
        expired: list[Entry] = []
        before = 0  # work of those served first, which only where they fill a batch leave no room
        for kind, floor in MIN_SHARE.items():
            # Alone at 1/16 of a 4-row batch a class would never get a row: the claim adds up.
            held = self._credit[kind] + floor * min(before, self.batch_rows)
            self._credit[kind] = min(held, self._work[kind])
            before += self._work[kind]
        batch: list[BatchItem] = []
        room = self.batch_rows
        for kind in CLASSES:
            kept = sum(int(self._credit[later]) for later in CLASSES if later > kind)
            allowed = max(room - kept, 0)
            if kind is Priority.BACKGROUND and now - self._heard < INTERACTIVE_WINDOW_SECONDS:
                # Nor is a row that came to wait for those that would fill up its batch.
                allowed = min(
                    allowed, int(self._credit[kind]) if batch else self.background_batch_rows
                )
            taken = self._take(kind, allowed, now, batch, expired)
            self._credit[kind] = max(self._credit[kind] - taken, 0.0)
            room -= taken
        return batch, expired

    def _take(
        self, kind: Priority, room: int, now: float, batch: list[BatchItem], expired: list[Entry]
    ) -> int:
        """Add rows of one class that weigh up to `room` to the batch; to an empty one at least one
        row. Returns what they weigh."""
        entries, taken = self._classes[kind], 0
        for _ in range(len(entries)):
            if taken >= room:
                break
            entry = entries[0]
            if entry.deadline <= now and self.discard(entry):
                expired.append(entry)
            if entry.dead:
                entries.popleft()
                continue
            rows = min(entry.waiting, (room - taken) // entry.weight or int(not batch))
            if not rows:
                break
            batch.append(BatchItem(entry, entry.payload, entry.taken, entry.taken + rows))
            self._leave(entry, rows)
            entry.taken += rows
            taken += rows * entry.weight
            if not entry.waiting:
                entries.popleft()
            elif kind is not Priority.SMALL:  # a small one stays first: its next batch ends it
                entries.popleft()
                entries.insert(MAX_INTERLEAVED - 1, entry)
        return taken

    def _leave(self, entry: Entry, rows: int) -> None:
        self._rows[entry.kind] -= rows
        self._work[entry.kind] -= rows * entry.weight
        self.rows -= rows
        if rows and rows == entry.waiting:
            self.bytes -= entry.bytes
