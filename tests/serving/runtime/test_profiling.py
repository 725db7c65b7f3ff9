"""The batch size chosen from measured timings."""

from __future__ import annotations

from latentd.runtime.profiling import (
    BatchTiming,
    background_batch_rows,
    choose_batch_size,
    measure,
    profile_still_valid,
    seconds_of,
)


def timings_of(*seconds: float) -> list[BatchTiming]:
    return [BatchTiming(1 << n, s) for n, s in enumerate(seconds)]


def test_largest_batch_within_the_budget_when_throughput_grows():
    timings = timings_of(0.010, 0.011, 0.012, 0.014, 0.060)
    assert choose_batch_size(timings, max_seconds=0.05) == 8


def test_largest_short_batch_when_throughput_is_flat():
    timings = timings_of(0.001, 0.002, 0.004, 0.008, 0.016)
    assert choose_batch_size(timings, max_seconds=0.05) == 4


def test_smallest_batch_when_throughput_is_flat_and_slow():
    assert choose_batch_size(timings_of(0.02, 0.04, 0.08), max_seconds=0.05) == 1


def test_single_rows_when_the_graph_is_slower_than_the_budget():
    assert choose_batch_size(timings_of(0.2), max_seconds=0.05) == 1


def test_seconds_of_an_unmeasured_batch_come_from_the_nearest():
    assert seconds_of(12, timings_of(0.001, 0.002, 0.004, 0.008)) == 0.012


def test_background_batch_takes_half_a_millisecond_or_little_more_than_one_row():
    assert background_batch_rows(timings_of(0.0001, 0.0002, 0.0004, 0.0008)) == 4
    assert background_batch_rows(timings_of(0.001, 0.0015, 0.0025, 0.004)) == 2
    assert background_batch_rows(timings_of(0.1, 0.3)) == 1


def test_measure_doubles_the_rows_up_to_the_byte_limit():
    ran: list[int] = []
    timings = measure(ran.append, row_bytes=64 << 20, max_seconds=10)
    assert [timing.rows for timing in timings] == [1, 2, 4]
    assert set(ran) == {1, 2, 4}


def test_batches_are_timed_by_the_clock_that_is_given():
    ran: list[int] = []
    timings = measure(ran.append, row_bytes=64 << 20, max_seconds=10, clock=lambda: sum(ran))
    assert timings == timings_of(1, 2, 4)


def test_known_profile_is_checked_on_one_row_and_warms_the_largest_batch():
    ran: list[int] = []
    assert profile_still_valid(ran.append, timings_of(0.1, 0.2, 0.4, 0.8), rows=8, idle_ratio=0)
    assert ran[0] == 8
    assert set(ran[1:]) == {1}


def test_known_profile_is_invalid_when_the_graph_is_slower():
    assert not profile_still_valid(
        lambda rows: sum(range(10_000)), timings_of(1e-9, 1e-9), rows=2, idle_ratio=0
    )
