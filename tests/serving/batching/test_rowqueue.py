"""Fairness and refusal, on a virtual clock."""

from __future__ import annotations

import math

import pytest

from latentd.batching.entries import Entry
from latentd.batching.rowqueue import INTERACTIVE_WINDOW_SECONDS, MAX_INTERLEAVED, RowQueue
from latentd.errors import DeadlineExceeded, Overloaded


def entry(rows: int, *, deadline: float = math.inf, background: bool = False) -> Entry:
    return Entry(f"{rows} rows", rows, 8 * rows, deadline, background)


def queue(batch_rows: int = 8, max_rows: int = 1000, max_bytes: int = 1 << 20) -> RowQueue:
    return RowQueue(batch_rows, max_rows, max_bytes)


def taken(q: RowQueue, now: float = 0.0) -> list[tuple[Entry, int, int]]:
    batch, _ = q.next_batch(now)
    return [(item.entry, item.start, item.stop) for item in batch]


def test_small_requests_run_in_order_and_are_split_at_the_end_of_a_batch():
    q = queue()
    a, b, c = entry(5), entry(6), entry(2)
    for e in (a, b, c):
        q.admit(e, 0.0)
    assert taken(q) == [(a, 0, 5), (b, 0, 3)]
    assert taken(q) == [(b, 3, 6), (c, 0, 2)]
    assert taken(q) == []
    assert (q.rows, q.bytes) == (0, 0)


def test_large_requests_take_turns():
    q = queue()
    a, b = entry(20), entry(20)
    q.admit(a, 0.0)
    q.admit(b, 0.0)
    order = [e for _ in range(5) for e, _, _ in taken(q)]
    assert order[:4] == [a, b, a, b]


def test_large_requests_beyond_max_interleaved_wait():
    q = queue()
    large = [entry(16) for _ in range(MAX_INTERLEAVED + 2)]
    for e in large:
        q.admit(e, 0.0)
    order = [e for _ in range(2 * len(large)) for e, _, _ in taken(q)]
    assert order[:MAX_INTERLEAVED] == large[:MAX_INTERLEAVED]
    assert order[MAX_INTERLEAVED : 2 * MAX_INTERLEAVED] == large[:MAX_INTERLEAVED]
    assert q.rows == 0


def test_single_rows_wait_at_most_two_batches_when_a_large_request_runs():
    q = queue(batch_rows=64, max_rows=1 << 20)
    q.admit(entry(100_000), 0.0)
    taken(q)  # the large one has the engine to itself
    singles = [entry(1) for _ in range(50)]
    for e in singles:
        q.admit(e, 0.0)
    served = {e for _ in range(2) for e, _, _ in taken(q)}
    assert served >= set(singles)


@pytest.mark.parametrize("batch_rows", [1, 3, 8, 64])
def test_no_priority_starves_another(batch_rows):
    q = queue(batch_rows, max_rows=1 << 30, max_bytes=1 << 40)
    large, background = entry(10**6), entry(10**6, background=True)
    q.admit(large, 0.0)
    q.admit(background, 0.0)
    rows = {"small": 0, large: 0, background: 0}
    for _ in range(640):
        while q.rows < 2 * 10**6 - rows[large] - rows[background] + 2 * batch_rows:
            q.admit(entry(1), 0.0)  # small ones always wait
        for e, start, stop in taken(q):
            rows[e if e in rows else "small"] += stop - start
    total = 640 * batch_rows
    assert sum(rows.values()) == total
    assert rows[large] == pytest.approx(total / 4, rel=0.02)
    assert rows[background] == pytest.approx(total / 16, rel=0.05)


def test_background_fills_batches_when_alone():
    q = queue()
    e = entry(20, background=True)
    q.admit(e, 0.0)
    assert [taken(q) for _ in range(3)] == [[(e, 0, 8)], [(e, 8, 16)], [(e, 16, 20)]]


def test_background_batches_are_short_when_interactive_rows_arrive():
    q = RowQueue(64, 1000, 1 << 20, background_batch_rows=8)
    background, call = entry(500, background=True), entry(3)
    q.admit(background, 0.0)
    assert taken(q, 0.0) == [(background, 0, 64)]
    q.admit(call, 1.0)
    assert taken(q, 1.0) == [(call, 0, 3)], "it does not wait for background rows"
    assert taken(q, 1.1) == [(background, 64, 72)]
    assert taken(q, 1.0 + INTERACTIVE_WINDOW_SECONDS) == [(background, 72, 136)], (
        "no interactive row for long"
    )


def test_background_keeps_its_share_when_interactive_rows_fill_all_batches():
    q = RowQueue(64, 10**6, 1 << 30, background_batch_rows=2)
    background = entry(10**5, background=True)
    q.admit(background, 0.0)
    rows = 0
    for step in range(160):
        q.admit(entry(64), step * 0.01)
        rows += sum(stop - start for e, start, stop in taken(q, step * 0.01) if e is background)
    assert rows == pytest.approx(160 * 64 / 16, rel=0.02)


def test_single_row_waits_at_most_one_short_batch_when_background_runs():
    """Calls at odd times; one row takes a millisecond, a full batch 64."""
    q = RowQueue(64, 10**6, 1 << 30, background_batch_rows=2)
    q.admit(entry(10**5, background=True), 0.0)
    calls = [0.0137 * n for n in range(1, 200)]
    now, waited = 0.0, []
    q.admit(entry(1), now)
    while calls:
        batch, _ = q.next_batch(now)
        waited += [now - s.entry.queued_at for s in batch if not s.entry.background]
        ends = now + 0.001 * sum(item.rows for item in batch)
        while calls and calls[0] <= ends:
            q.admit(entry(1), calls.pop(0))
        now = ends
    assert len(waited) >= 190
    assert max(waited) <= 0.002 + 1e-9


def test_discarded_entry_is_never_taken_nor_counted():
    q = queue()
    a, b = entry(3), entry(4)
    q.admit(a, 0.0)
    q.admit(b, 0.0)
    assert q.discard(a)
    assert not q.discard(a), "an entry is discarded once"
    assert (q.rows, q.bytes) == (4, 32)
    assert taken(q) == [(b, 0, 4)]
    assert (q.rows, q.bytes) == (0, 0)


def test_discard_between_two_batches_frees_the_waiting_rows():
    q = queue()
    a = entry(20)
    q.admit(a, 0.0)
    taken(q)
    q.discard(a)
    assert (q.rows, q.bytes) == (0, 0)
    assert taken(q) == []


def test_expired_entries_are_returned_and_not_run():
    q = queue()
    late, good = entry(3, deadline=1.0), entry(3)
    q.admit(late, 0.0)
    q.admit(good, 0.0)
    batch, expired = q.next_batch(2.0)
    assert expired == [late]
    assert [item.entry for item in batch] == [good]
    assert q.rows == 0


def test_full_queue_refuses_one_row_and_many():
    q = queue(max_rows=10)
    q.admit(entry(5), 0.0)
    q.admit(entry(5), 0.0)
    for rows in (1, 5):
        with pytest.raises(Overloaded, match="Queue full") as refusal:
            q.admit(entry(rows), 0.0)
        assert refusal.value.reason == "queue_full"
        assert refusal.value.retry_after > 0


def test_bytes_are_bounded():
    q = queue(max_bytes=100)
    q.admit(entry(10), 0.0)
    with pytest.raises(Overloaded):
        q.admit(entry(3), 0.0)


def test_empty_queue_admits_a_request_larger_than_its_limit():
    queue(max_rows=10).admit(entry(50), 0.0)


def test_small_requests_find_room_when_large_ones_fill_the_queue():
    q = queue(max_rows=95)
    calls = [entry(30) for _ in range(500)]
    admitted = 0
    for call in calls:
        try:
            q.admit(call, 0.0)
            admitted += 1
        except Overloaded:
            continue
    assert admitted == 3
    q.admit(entry(8), 0.0)
    with pytest.raises(Overloaded):
        q.admit(entry(30), 0.0)
    with pytest.raises(Overloaded):
        q.admit(entry(3, background=True), 0.0)


def test_background_leaves_room_for_interactive_requests():
    q = queue(max_rows=100, max_bytes=1000)
    q.admit(entry(60, background=True), 0.0)
    with pytest.raises(Overloaded):
        q.admit(entry(50, background=True), 0.0)
    q.admit(entry(30), 0.0)
    q.admit(entry(8), 0.0)


def test_huge_request_is_admitted_when_half_of_the_queue_is_free():
    q = queue(max_rows=100)
    q.admit(entry(40), 0.0)
    q.admit(entry(1000), 0.0)
    with pytest.raises(Overloaded):
        q.admit(entry(10), 0.0)
    q.admit(entry(8), 0.0)


def test_last_quarter_of_the_bytes_is_kept_for_small_requests():
    q = queue(max_rows=1000, max_bytes=400)
    q.admit(entry(36), 0.0)  # 288 bytes
    with pytest.raises(Overloaded):
        q.admit(entry(9), 0.0)
    for _ in range(14):
        q.admit(entry(1), 0.0)
    with pytest.raises(Overloaded):
        q.admit(entry(1), 0.0)


def test_part_of_a_large_call_has_priority_large():
    q = queue()
    part, small = entry(4), entry(4)
    part.work = 9
    q.admit(part, 0.0)
    q.admit(small, 0.0)
    assert taken(q)[0] == (small, 0, 4)


def test_heavy_rows_fill_a_batch_by_their_weight():
    q = queue()
    heavy, small = entry(4), entry(2)
    heavy.weight = 3  # 12 of light ones: more than a batch
    q.admit(heavy, 0.0)
    q.admit(small, 0.0)
    assert taken(q) == [(small, 0, 2), (heavy, 0, 2)]
    assert taken(q) == [(heavy, 2, 4)]
    assert (q.rows, q.bytes) == (0, 0)


@pytest.mark.parametrize("background", [False, True])
def test_row_heavier_than_the_room_is_taken_alone(background):
    q = RowQueue(8, 1000, 1 << 20, background_batch_rows=2)
    q.admit(entry(1), 0.0)
    taken(q)
    heavy = entry(2, background=background)
    heavy.weight = 7
    q.admit(heavy, 0.0)
    assert taken(q) == [(heavy, 0, 1)]
    assert taken(q) == [(heavy, 1, 2)]
    assert taken(q) == []


def test_heavy_rows_get_their_share_and_no_more():
    q = queue(batch_rows=8, max_rows=1 << 30, max_bytes=1 << 40)
    heavy = entry(10**5)
    heavy.weight = 5
    q.admit(heavy, 0.0)
    rows = 0
    for _ in range(400):
        q.admit(entry(8), 0.0)  # as much as a batch holds
        rows += sum(stop - start for e, start, stop in taken(q) if e is heavy)
    assert rows * heavy.weight == pytest.approx(400 * 8 / 4, rel=0.05)


def test_predicted_wait_counts_weights():
    q = queue(max_rows=10**6)
    q.observe(8, 1.0)
    heavy = entry(8)
    heavy.weight = 8
    q.admit(heavy, 0.0)
    with pytest.raises(Overloaded, match=r"wait 1[0-9]\.[0-9]+ s"):
        q.admit(entry(16, deadline=5.0), 0.0)
    assert q.next_seconds == 1.0


def test_empty_queue_refuses_a_request_that_cannot_end_in_time():
    q = RowQueue(8, 10**6, 1 << 30, batch_seconds=1.0)
    with pytest.raises(DeadlineExceeded, match=r"80 rows take at least 10.000 s.* 9.000 s left"):
        q.admit(entry(80, deadline=109.0), 100.0)
    q.observe(8, 3.0)  # slower than known: not a reason to refuse more
    q.check(entry(80, deadline=110.0), 100.0)
    q.observe(8, 0.5)
    q.check(entry(80, deadline=105.0), 100.0)


def test_single_rows_wait_at_most_two_batches_when_500_scores_run():
    """Each of 1,024 draws; a full batch of 64 rows takes 0.064 s. Refused calls retry."""
    q = RowQueue(64, 16384, 1 << 30, batch_seconds=0.064)
    now, waited, scored, arrived = 0.0, [], 0, 0
    calls = [0.0137 * n for n in range(1, 2000)]
    waiting = 500
    while calls:
        for _ in range(waiting):
            try:
                q.admit(entry(1024), now)
            except Overloaded:
                break
            waiting -= 1
        batch, _ = q.next_batch(now)
        now += 0.001 * sum(item.rows for item in batch)
        for item in batch:
            if item.entry.rows == 1:
                waited.append(now - item.entry.queued_at)
            else:
                scored += item.rows
                waiting += item.stop == 1024
        while calls and calls[0] <= now:
            q.admit(entry(1), calls.pop(0))
            arrived += 1
    assert len(waited) >= arrived - 10
    assert max(waited) <= 2 * 0.064 + 1e-9
    assert scored >= 0.25 * 1000 * now, "the large calls have at least their item"


def test_wait_beyond_the_deadline_is_refused_with_retry_after():
    q = queue(max_rows=10**6)
    q.observe(8, 1.0)  # a full batch takes a second
    q.admit(entry(8 * 10), 0.0)
    q.admit(entry(8, deadline=5.0), 0.0)  # runs before the large one
    with pytest.raises(Overloaded) as refusal:
        q.admit(entry(80, deadline=5.0), 0.0)
    assert refusal.value.reason == "deadline"
    assert 5.0 <= refusal.value.retry_after <= 20.0
