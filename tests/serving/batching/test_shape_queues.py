"""Rows of several shapes in one queue: no batch mixes them and none starves. On a virtual clock."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentd.batching.entries import Entry, Priority
from latentd.batching.rowqueue import MIN_SHARE, RowQueue
from latentd.batching.shape_queues import MAX_SHAPES
from latentd.errors import DeadlineExceeded, Overloaded


def entry(
    rows: int,
    shape: str = "",
    *,
    scale: int = 1,
    weight: int = 1,
    deadline: float = math.inf,
    background: bool = False,
) -> Entry:
    e = Entry(f"{rows} rows", rows, 8 * rows, deadline, background)
    e.shape, e.scale, e.weight = shape, scale, weight
    return e


def queue(batch_rows: int = 8, background_batch_rows: int = 0) -> RowQueue:
    return RowQueue(batch_rows, 1 << 40, 1 << 50, 0.0, background_batch_rows)


def admitted(q: RowQueue, *entries: Entry, now: float = 0.0) -> None:
    for e in entries:
        q.admit(e, now)


def taken(q: RowQueue, now: float = 0.0) -> list[tuple[Entry, int, int]]:
    batch, _ = q.next_batch(now)
    return [(item.entry, item.start, item.stop) for item in batch]


def shapes_of(q: RowQueue, batches: int) -> str:
    """The shape of each of the next batches."""
    return "".join(taken(q)[0][0].shape for _ in range(batches))


def test_batch_holds_rows_of_one_shape():
    q = queue()
    a, b, c = entry(2, "a"), entry(3, "b"), entry(4, "a")
    admitted(q, a, b, c)
    assert taken(q) == [(a, 0, 2), (c, 0, 4)]
    assert taken(q) == [(b, 0, 3)]
    assert taken(q) == []
    assert (q.rows, q.bytes) == (0, 0)


@pytest.mark.parametrize(
    ("scale", "weight", "rows"),
    [(1, 1, 8), (2, 1, 4), (3, 1, 2), (2, 2, 2), (8, 1, 1), (100, 1, 1)],
)
def test_batch_holds_as_many_rows_as_their_scale_allows(scale, weight, rows):
    q = queue()
    e = entry(17, "a", scale=scale, weight=weight)
    admitted(q, e)
    assert q.rows == 17 * scale
    assert taken(q) == [(e, 0, rows)]
    while q.rows:
        assert taken(q)
    assert (q.rows, q.bytes, e.rows_waiting) == (0, 0, 0)


def test_small_rows_choose_the_shape_that_waits_longest():
    q = queue()
    admitted(q, entry(12, "b"), now=0.0)  # two batches, so it is large
    for n, shape in enumerate("abacab"):
        admitted(q, entry(2, shape), now=1.0 + n)
    assert [{e.shape for e, _, _ in taken(q)} for _ in range(3)] == [{"a"}, {"b"}, {"c"}]


@pytest.mark.parametrize("background", [False, True])
def test_shapes_of_large_and_of_background_entries_take_turns(background):
    q = queue()
    admitted(q, *(entry(100, shape, background=background) for shape in "abc"))
    assert shapes_of(q, 4) == "abca"
    admitted(q, entry(100, "d", background=background))
    assert shapes_of(q, 6) == "bcadbc"


def test_shape_that_waits_again_goes_behind_those_that_waited():
    q = queue()
    admitted(q, entry(9, "a"), entry(100, "b"), entry(100, "c"))
    assert shapes_of(q, 4) == "abca"
    admitted(q, entry(100, "a"))
    assert shapes_of(q, 4) == "bcab"


def small_ones_always_wait(q: RowQueue, shapes: str, rows: int) -> Callable[[], None]:
    """Keeps so many rows of each of these shapes waiting; each call is one second later."""
    waiting: list[Entry] = []
    seconds = itertools.count()

    def refill() -> None:
        now = float(next(seconds))
        waiting[:] = [e for e in waiting if e.rows_waiting]
        for shape in shapes:
            while sum(e.rows_waiting for e in waiting if e.shape == shape) < rows:
                waiting.append(entry(1, shape))
                admitted(q, waiting[-1], now=now)

    return refill


def test_later_priority_chooses_one_batch_when_it_has_saved_up_a_full_one():
    q = queue()
    refill = small_ones_always_wait(q, "a", 16)
    admitted(q, entry(1000, "b"))
    chosen = ""
    for _ in range(12):
        refill()
        chosen += shapes_of(q, 1)
    assert chosen == "aaabaaabaaab"


def test_rows_that_fill_up_batches_leave_their_priority_its_turn_for_another_shape():
    """Small rows of one shape never stop; large ones of that shape ride along."""
    q = queue()
    admitted(q, entry(10**6, "a"), entry(10**6, "b"))
    refill = small_ones_always_wait(q, "a", 1)
    rows: Counter[str] = Counter()
    for _ in range(100):
        refill()
        rows.update({e.shape: stop - start for e, start, stop in taken(q) if e.rows > 1})
    assert rows["b"] == 100 * 8 / 5, "one batch in five: four shares of 1/4 are one"
    assert rows["a"] == 100 * 4 / 5 * 7


def test_trickle_of_a_large_call_does_not_choose_every_batch():
    """Its parts have one row each; small rows of its shape ride along, those of another wait."""
    q = queue()
    refill = small_ones_always_wait(q, "ab", 8)
    batches: Counter[str] = Counter()
    for _ in range(160):
        part = entry(1, "b")
        part.work = 1000
        admitted(q, part)
        refill()
        batches[shapes_of(q, 1)] += 1
    assert batches["a"] >= 160 / 4


def test_small_row_waits_one_batch_for_each_shape_before_it():
    """Large and background rows of other shapes take their shares meanwhile."""
    q = queue()
    admitted(q, *(entry(10**6, shape) for shape in "xy"), entry(10**6, "z", background=True))
    for _ in range(40):
        taken(q)
    others = [entry(1, str(n)) for n in range(20)]
    for n, e in enumerate([*others, rare := entry(1, "rare")]):
        admitted(q, e, now=n / 100)
    batches = next(n for n in itertools.count(1) if rare in [e for e, _, _ in taken(q)])
    assert batches <= 21 * 16 / 11 + 2


def test_expired_rows_of_a_shape_do_not_cost_a_batch():
    q = queue()
    late, good = entry(3, "a", deadline=1.0), entry(3, "b")
    admitted(q, late, good)
    batch, expired = q.next_batch(2.0)
    assert expired == [late]
    assert [item.entry for item in batch] == [good]
    assert q.rows == 0


def test_one_shape_too_many_is_refused():
    q = queue()
    waiting = [entry(1, str(n)) for n in range(MAX_SHAPES)]
    admitted(q, *waiting)
    with pytest.raises(Overloaded, match=r"32 other shapes wait.* Retry in") as refusal:
        q.admit(entry(1, "more"), 0.0)
    assert refusal.value.reason == "shapes"
    assert refusal.value.retry_after > 0
    admitted(q, entry(1, "7"))
    q.discard(waiting[3])
    admitted(q, entry(1, "more"))
    with pytest.raises(Overloaded):
        q.check(entry(1, "3"), 0.0)


def test_full_queue_counts_rows_by_their_scale():
    q = RowQueue(8, 100, 1 << 30)
    admitted(q, entry(2, "a", scale=40))  # large
    admitted(q, entry(1, "b", scale=8))
    with pytest.raises(Overloaded, match=r"88 rows queued, 2 more \(each counts as 10\)"):
        q.admit(entry(2, "c", scale=10), 0.0)
    admitted(q, entry(12, "c"))
    assert q.rows == 100


def test_row_that_costs_more_than_a_batch_is_admitted_and_run():
    q = RowQueue(8, 100, 1 << 30, batch_seconds=1.0)
    huge = entry(1, "a", scale=1000, deadline=5.0)
    admitted(q, huge)
    assert taken(q) == [(huge, 0, 1)]
    with pytest.raises(DeadlineExceeded, match=r"2 rows take at least 250.000 s"):
        q.admit(entry(2, "a", scale=1000, deadline=5.0), 0.0)


def test_predicted_wait_counts_scales():
    q = queue()
    q.observe(8, 1.0)
    admitted(q, entry(2, "a", scale=16))
    with pytest.raises(Overloaded, match=r"wait 6\.[0-9]+ s"):
        q.admit(entry(9, "b", deadline=5.0), 0.0)


def test_next_batch_is_as_long_as_its_heaviest_row():
    q = queue()
    q.observe(8, 1.0)
    admitted(q, entry(1, "a", scale=40))
    assert q.next_seconds == 5.0
    taken(q)
    admitted(q, entry(40, "b"))
    assert q.next_seconds == 1.0


def test_batch_is_full_only_with_rows_of_one_shape():
    q = queue()
    admitted(q, entry(4, "a"), entry(7, "b"))
    assert not q.full_batch_waits
    admitted(q, entry(1, "b"))
    assert q.full_batch_waits


def test_rows_of_more_than_a_batch_get_their_share_and_no_more():
    q = queue()
    refill = small_ones_always_wait(q, "a", 8)
    admitted(q, entry(10**6, "b", scale=100))
    work: Counter[str] = Counter()
    for _ in range(1000):
        refill()
        for e, start, stop in taken(q):
            work[e.shape] += (stop - start) * e.scale
    assert work["b"] / work.total() == pytest.approx(1 / 4, abs=0.02)


def test_background_row_of_more_than_a_batch_waits_until_its_share_pays_for_it():
    q = queue()
    admitted(q, entry(10**6, "a", scale=100), entry(10**6, "b", scale=100))
    admitted(q, entry(10**6, "a", scale=100, background=True))
    rows = Counter(e.background for _ in range(320) for e, _, _ in taken(q))
    assert rows[True] == pytest.approx(320 / 17, abs=2)


SCALES = (1, 2, 3, 5, 8, 20)  # of the shapes 0 to 5: in batches of 8 rows
PLACES = st.lists(
    st.tuples(st.sampled_from(Priority), st.integers(0, 5)), min_size=2, max_size=12, unique=True
)


def backlog(priority: Priority, shape: int) -> Iterator[Entry]:
    """Endless entries of this priority."""
    scale, background = SCALES[shape], priority is Priority.BACKGROUND
    while True:
        rows = 1 if priority is Priority.SMALL else 1000
        yield entry(rows, str(shape), scale=scale, background=background)


@settings(max_examples=30, deadline=None)
@given(PLACES, st.sampled_from([1, 8]))
def test_no_shape_and_no_priority_starves(places, short):
    """While each of these keeps work waiting, each is served again and again; shares hold."""
    places = [(p, s) for p, s in places if p is not Priority.SMALL or SCALES[s] <= 8]
    q = queue(background_batch_rows=short)
    sources = {place: backlog(*place) for place in places}
    waiting: dict[tuple[Priority, int], list[Entry]] = {place: [] for place in places}
    last = dict.fromkeys(places, 0)
    of_priority: Counter[Priority] = Counter()
    per_priority = Counter(p for p, _ in places)
    total, now = 0, 0.0
    while total < 6_000:
        for place, entries in waiting.items():
            entries[:] = [e for e in entries if e.rows_waiting]
            while sum(e.rows_waiting for e in entries) < max(1, 8 // SCALES[place[1]]):
                entries.append(next(sources[place]))
                admitted(q, entries[-1], now=now)
                assert entries[-1].priority is place[0]
        batch, _ = q.next_batch(now)
        now += 1e-4  # so that interactive rows arrive all the time
        assert len({item.entry.shape for item in batch}) == 1
        total += max(sum(item.rows * item.entry.row_work for item in batch), short)
        for item in batch:
            place = (item.entry.priority, int(item.entry.shape))
            of_priority[place[0]] += item.rows * item.entry.row_work
            last[place] = total
        for place in places:
            share = MIN_SHARE[place[0]] or 11 / 16
            # As much as it takes all shapes of its priority to have one turn each, and one more: a
            # turn costs up to 20, and credit is saved up in whole batches of 8.
            assert total - last[place] <= (per_priority[place[0]] + 1) * 40 / share, place
    for priority, share in MIN_SHARE.items():
        if per_priority[priority] and short == 1:
            assert of_priority[priority] >= 0.85 * share * total - 40
    if per_priority[Priority.SMALL] and short == 1:
        # Not 11/16: where two rows fill a batch, the others' share of it is a whole row.
        assert of_priority[Priority.SMALL] >= total / 2


ARRIVALS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.1, 1.0, 7.0]),  # seconds since the last one
        st.integers(1, 30),  # rows
        st.integers(0, 5),  # shape
        st.booleans(),  # background
        st.sampled_from([math.inf, 3.0, 20.0]),  # seconds to its deadline
        st.sampled_from(["keep", "keep", "cancel one"]),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(ARRIVALS, st.sampled_from([1, 3, 8]), st.sampled_from([0, 1]))
def test_every_entry_is_served_or_refused_or_expires(arrivals, batch_rows, short):
    q = RowQueue(batch_rows, 300, 4000, 0.0, short)
    now = free_at = 0.0
    admitted_ones: list[Entry] = []
    gone: set[Entry] = set()
    rows_run: Counter[Entry] = Counter()
    bounds: dict[Entry, tuple[float, float]] = {}  # what had run when it arrived, what may
    work_run = 0.0

    def run_until(end: float) -> None:
        nonlocal free_at, work_run
        while q.rows and free_at <= end:
            start = max(free_at, now)
            batch, expired = q.next_batch(start)
            gone.update(expired)
            assert all(e.deadline <= start for e in expired)
            if not batch:
                assert q.rows == 0
                return
            assert len({item.entry.shape for item in batch}) == 1
            scale = batch[0].entry.scale
            assert 0 < sum(item.rows for item in batch) <= max(1, batch_rows // scale)
            size = max(sum(item.rows for item in batch) * scale, short or batch_rows)
            work_run += size
            free_at = start + size / batch_rows
            q.observe(size, size / batch_rows)
            for item in batch:
                assert item.start == rows_run[item.entry]
                assert item.entry not in gone
                rows_run[item.entry] += item.rows
                if item.entry in bounds and item.stop == item.entry.rows:
                    before, allowed = bounds.pop(item.entry)
                    assert work_run - before <= allowed

    for seconds, rows, shape, background, patience, fate in arrivals:
        run_until(now + seconds)
        now += seconds
        e = entry(rows, str(shape), scale=SCALES[shape], background=background)
        e.deadline = now + patience
        try:
            q.admit(e, now)
        except (Overloaded, DeadlineExceeded):
            continue
        admitted_ones.append(e)
        if e.priority is Priority.SMALL:
            older = [o for o in admitted_ones if o.priority is e.priority and not o.done]
            batches = 0
            for same in {o.shape: o for o in older}.values():
                rows_before = sum(o.rows_waiting for o in older if o.shape == same.shape)
                batches += math.ceil(rows_before / max(1, batch_rows // same.scale))
            # Twice: rows of other priorities may push the last row of a batch into a further one.
            bounds[e] = work_run, 2 * batches * batch_rows * 16 / 11 + 4 * max(batch_rows, 20)
        if fate == "cancel one":
            victim = admitted_ones[len(admitted_ones) // 2]
            if victim.rows_waiting and q.discard(victim):
                gone.add(victim)
        live = [e for e in admitted_ones if not e.done]
        assert q.rows == sum(e.rows_waiting * e.scale for e in live)
    run_until(math.inf)
    assert (q.rows, q.bytes, q.next_seconds, q.oldest()) == (0, 0, 0.0, None)
    assert all(rows_run[e] == e.rows for e in admitted_ones if e not in gone)
