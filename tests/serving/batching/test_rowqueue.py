"""Fairness and refusal, on a virtual clock."""

from __future__ import annotations

import math

import pytest

from latentd.batching.rowqueue import INTERACTIVE_WINDOW_SECONDS, MAX_INTERLEAVED, Entry, RowQueue
from latentd.errors import DeadlineExceeded, Overloaded


def entry(rows: int, *, deadline: float = math.inf, background: bool = False) -> Entry:
    return Entry(f"{rows} rows", rows, 8 * rows, deadline, background)


def queue(batch_rows: int = 8, max_rows: int = 1000, max_bytes: int = 1 << 20) -> RowQueue:
    return RowQueue(batch_rows, max_rows, max_bytes)


def taken(q: RowQueue, now: float = 0.0) -> list[tuple[Entry, int, int]]:
    batch, _ = q.take(now)
    return [(share.entry, share.start, share.stop) for share in batch]


def test_small_requests_are_served_in_order_and_split_at_the_end_of_a_batch():
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


def test_only_a_few_large_requests_take_turns_so_that_some_end_early():
    q = queue()
    large = [entry(16) for _ in range(MAX_INTERLEAVED + 2)]
    for e in large:
        q.admit(e, 0.0)
    order = [e for _ in range(2 * len(large)) for e, _, _ in taken(q)]
    assert order[:MAX_INTERLEAVED] == large[:MAX_INTERLEAVED]
    assert order[MAX_INTERLEAVED : 2 * MAX_INTERLEAVED] == large[:MAX_INTERLEAVED]
    assert q.rows == 0


def test_fifty_single_rows_beside_100_000_wait_at_most_two_batches():
    q = queue(batch_rows=64, max_rows=1 << 20)
    q.admit(entry(100_000), 0.0)
    taken(q)  # the large one has the engine to itself
    singles = [entry(1) for _ in range(50)]
    for e in singles:
        q.admit(e, 0.0)
    served = {e for _ in range(2) for e, _, _ in taken(q)}
    assert served >= set(singles)


@pytest.mark.parametrize("batch_rows", [1, 3, 8, 64])
def test_no_class_starves_another(batch_rows):
    q = queue(batch_rows, max_rows=1 << 30, max_bytes=1 << 40)
    large, patient = entry(10**6), entry(10**6, background=True)
    q.admit(large, 0.0)
    q.admit(patient, 0.0)
    rows = {"small": 0, large: 0, patient: 0}
    for _ in range(640):
        while q.rows < 2 * 10**6 - rows[large] - rows[patient] + 2 * batch_rows:
            q.admit(entry(1), 0.0)  # never a lack of small ones
        for e, start, stop in taken(q):
            rows[e if e in rows else "small"] += stop - start
    total = 640 * batch_rows
    assert sum(rows.values()) == total
    assert rows[large] == pytest.approx(total / 4, rel=0.02)
    assert rows[patient] == pytest.approx(total / 16, rel=0.05)


def test_background_alone_has_every_batch_to_itself():
    q = queue()
    e = entry(20, background=True)
    q.admit(e, 0.0)
    assert [taken(q) for _ in range(3)] == [[(e, 0, 8)], [(e, 8, 16)], [(e, 16, 20)]]


def test_background_runs_in_short_batches_while_interactive_rows_come():
    q = RowQueue(64, 1000, 1 << 20, background_batch_rows=8)
    patient, call = entry(500, background=True), entry(3)
    q.admit(patient, 0.0)
    assert taken(q, 0.0) == [(patient, 0, 64)]
    q.admit(call, 1.0)
    assert taken(q, 1.0) == [(call, 0, 3)], "whose answer waits for no others"
    assert taken(q, 1.1) == [(patient, 64, 72)]
    assert taken(q, 1.0 + INTERACTIVE_WINDOW_SECONDS) == [(patient, 72, 136)], (
        "nobody came for long"
    )


def test_background_keeps_its_share_where_interactive_rows_fill_all_batches():
    q = RowQueue(64, 10**6, 1 << 30, background_batch_rows=2)
    patient = entry(10**5, background=True)
    q.admit(patient, 0.0)
    rows = 0
    for step in range(160):
        q.admit(entry(64), step * 0.01)
        rows += sum(stop - start for e, start, stop in taken(q, step * 0.01) if e is patient)
    assert rows == pytest.approx(160 * 64 / 16, rel=0.02)


def test_one_row_beside_background_waits_for_a_short_batch_at_the_most():
    """Calls at odd moments; a row takes a millisecond, a full batch 64."""
    q = RowQueue(64, 10**6, 1 << 30, background_batch_rows=2)
    q.admit(entry(10**5, background=True), 0.0)
    calls = [0.0137 * n for n in range(1, 200)]
    now, waited = 0.0, []
    q.admit(entry(1), now)
    while calls:
        batch, _ = q.take(now)
        waited += [now - s.entry.enqueued_at for s in batch if not s.entry.background]
        ends = now + 0.001 * sum(share.rows for share in batch)
        while calls and calls[0] <= ends:
            q.admit(entry(1), calls.pop(0))
        now = ends
    assert len(waited) >= 190
    assert max(waited) <= 0.002 + 1e-9


def test_the_discarded_are_never_taken_and_count_no_longer():
    q = queue()
    a, b = entry(3), entry(4)
    q.admit(a, 0.0)
    q.admit(b, 0.0)
    assert q.discard(a)
    assert not q.discard(a), "an entry dies once"
    assert (q.rows, q.bytes) == (4, 32)
    assert taken(q) == [(b, 0, 4)]
    assert (q.rows, q.bytes) == (0, 0)


def test_an_entry_discarded_between_two_batches_frees_what_waits():
    q = queue()
    a = entry(20)
    q.admit(a, 0.0)
    taken(q)
    q.discard(a)
    assert (q.rows, q.bytes) == (0, 0)
    assert taken(q) == []


def test_the_expired_are_returned_and_not_run():
    q = queue()
    late, good = entry(3, deadline=1.0), entry(3)
    q.admit(late, 0.0)
    q.admit(good, 0.0)
    batch, expired = q.take(2.0)
    assert expired == [late]
    assert [share.entry for share in batch] == [good]
    assert q.rows == 0


def test_a_full_queue_refuses_one_row_as_it_does_many():
    q = queue(max_rows=10)
    q.admit(entry(5), 0.0)
    q.admit(entry(5), 0.0)
    for rows in (1, 5):
        with pytest.raises(Overloaded, match="queue is full") as refusal:
            q.admit(entry(rows), 0.0)
        assert refusal.value.reason == "queue_full"
        assert refusal.value.retry_after > 0


def test_bytes_are_bounded_as_rows_are():
    q = queue(max_bytes=100)
    q.admit(entry(10), 0.0)
    with pytest.raises(Overloaded):
        q.admit(entry(3), 0.0)


def test_an_empty_queue_admits_what_is_larger_than_itself():
    queue(max_rows=10).admit(entry(50), 0.0)


def test_large_work_counts_whole_and_leaves_small_requests_their_room():
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


def test_patient_work_leaves_room_for_all_others():
    q = queue(max_rows=100, max_bytes=1000)
    q.admit(entry(60, background=True), 0.0)
    with pytest.raises(Overloaded):
        q.admit(entry(50, background=True), 0.0)
    q.admit(entry(30), 0.0)
    q.admit(entry(8), 0.0)


def test_a_giant_finds_room_where_half_of_the_queue_is_free():
    q = queue(max_rows=100)
    q.admit(entry(40), 0.0)
    q.admit(entry(1000), 0.0)
    with pytest.raises(Overloaded):
        q.admit(entry(10), 0.0)
    q.admit(entry(8), 0.0)


def test_the_last_quarter_of_the_bytes_is_for_small_requests():
    q = queue(max_rows=1000, max_bytes=400)
    q.admit(entry(36), 0.0)  # 288 bytes
    with pytest.raises(Overloaded):
        q.admit(entry(9), 0.0)
    for _ in range(14):
        q.admit(entry(1), 0.0)
    with pytest.raises(Overloaded):
        q.admit(entry(1), 0.0)


def test_a_part_of_a_large_call_is_large():
    q = queue()
    part, small = entry(4), entry(4)
    part.work = 9
    q.admit(part, 0.0)
    q.admit(small, 0.0)
    assert taken(q)[0] == (small, 0, 4)


def test_heavy_rows_take_as_much_of_a_batch_as_they_weigh():
    q = queue()
    heavy, small = entry(4), entry(2)
    heavy.weight = 3  # 12 of light ones: more than a batch
    q.admit(heavy, 0.0)
    q.admit(small, 0.0)
    assert taken(q) == [(small, 0, 2), (heavy, 0, 2)]
    assert taken(q) == [(heavy, 2, 4)]
    assert (q.rows, q.bytes) == (0, 0)


@pytest.mark.parametrize("background", [False, True])
def test_a_row_that_weighs_more_than_there_is_room_for_is_taken_alone(background):
    q = RowQueue(8, 1000, 1 << 20, background_batch_rows=2)
    q.admit(entry(1), 0.0)
    taken(q)
    heavy = entry(2, background=background)
    heavy.weight = 7
    q.admit(heavy, 0.0)
    assert taken(q) == [(heavy, 0, 1)]
    assert taken(q) == [(heavy, 1, 2)]
    assert taken(q) == []


def test_heavy_rows_keep_their_share_and_no_more():
    q = queue(batch_rows=8, max_rows=1 << 30, max_bytes=1 << 40)
    heavy = entry(10**5)
    heavy.weight = 5
    q.admit(heavy, 0.0)
    rows = 0
    for _ in range(400):
        q.admit(entry(8), 0.0)  # as much as a batch holds
        rows += sum(stop - start for e, start, stop in taken(q) if e is heavy)
    assert rows * heavy.weight == pytest.approx(400 * 8 / 4, rel=0.05)


def test_the_predicted_wait_counts_what_rows_weigh():
    q = queue(max_rows=10**6)
    q.observe(8, 1.0)
    heavy = entry(8)
    heavy.weight = 8
    q.admit(heavy, 0.0)
    with pytest.raises(Overloaded, match=r"about 1[0-9]\.[0-9]+ s"):
        q.admit(entry(16, deadline=5.0), 0.0)
    assert q.next_seconds == 1.0


def test_what_cannot_be_run_in_time_is_refused_even_by_an_empty_queue():
    q = RowQueue(8, 10**6, 1 << 30, batch_seconds=1.0)
    with pytest.raises(DeadlineExceeded, match=r"80 rows take 10.000 s at least.* 9.000 s left"):
        q.admit(entry(80, deadline=109.0), 100.0)
    q.observe(8, 3.0)  # slower than known, and no reason to refuse more
    q.check(entry(80, deadline=110.0), 100.0)
    q.observe(8, 0.5)
    q.check(entry(80, deadline=105.0), 100.0)


def test_single_rows_beside_500_scores_wait_two_batches_at_the_most():
    """Each of 1,024 draws; a full batch of 64 rows takes 0.064 s. Calls that are refused return."""
    q = RowQueue(64, 16384, 1 << 30, batch_seconds=0.064)
    now, waited, scored, asked = 0.0, [], 0, 0
    calls = [0.0137 * n for n in range(1, 2000)]
    waiting = 500
    while calls:
        for _ in range(waiting):
            try:
                q.admit(entry(1024), now)
            except Overloaded:
                break
            waiting -= 1
        batch, _ = q.take(now)
        now += 0.001 * sum(share.rows for share in batch)
        for share in batch:
            if share.entry.rows == 1:
                waited.append(now - share.entry.enqueued_at)
            else:
                scored += share.rows
                waiting += share.stop == 1024
        while calls and calls[0] <= now:
            q.admit(entry(1), calls.pop(0))
            asked += 1
    assert len(waited) >= asked - 10
    assert max(waited) <= 2 * 0.064 + 1e-9
    assert scored >= 0.25 * 1000 * now, "and the large calls have more than their share"


def test_a_wait_beyond_the_deadline_is_refused_at_once_and_says_when_to_return():
    q = queue(max_rows=10**6)
    q.observe(8, 1.0)  # a full batch takes a second
    q.admit(entry(8 * 10), 0.0)
    q.admit(entry(8, deadline=5.0), 0.0)  # goes before the large one
    with pytest.raises(Overloaded) as refusal:
        q.admit(entry(80, deadline=5.0), 0.0)
    assert refusal.value.reason == "deadline"
    assert 5.0 <= refusal.value.retry_after <= 20.0
