"""The batch that is chosen from a measured curve."""

from __future__ import annotations

from latentd.runtime.profiling import (
    BatchTiming,
    background_batch_rows,
    choose_batch_size,
    measure,
    profile_still_valid,
    seconds_of,
)


def curve(*seconds: float) -> list[BatchTiming]:
    return [BatchTiming(1 << n, s) for n, s in enumerate(seconds)]


def test_throughput_that_grows_takes_the_largest_batch_within_the_budget():
    costs = curve(0.010, 0.011, 0.012, 0.014, 0.060)
    assert choose_batch_size(costs, most_seconds=0.05) == 8


def test_throughput_that_is_flat_takes_the_largest_short_batch():
    costs = curve(0.001, 0.002, 0.004, 0.008, 0.016)
    assert choose_batch_size(costs, most_seconds=0.05) == 4


def test_throughput_that_is_flat_and_slow_takes_the_smallest():
    assert choose_batch_size(curve(0.02, 0.04, 0.08), most_seconds=0.05) == 1


def test_a_graph_slower_than_the_budget_runs_row_by_row():
    assert choose_batch_size(curve(0.2), most_seconds=0.05) == 1


def test_a_batch_that_was_not_measured_is_judged_by_its_neighbour():
    assert seconds_of(12, curve(0.001, 0.002, 0.004, 0.008)) == 0.012


def test_a_short_batch_is_half_a_millisecond_or_little_more_than_a_row_of_a_slow_graph():
    assert background_batch_rows(curve(0.0001, 0.0002, 0.0004, 0.0008)) == 4
    assert background_batch_rows(curve(0.001, 0.0015, 0.0025, 0.004)) == 2
    assert background_batch_rows(curve(0.1, 0.3)) == 1


def test_measuring_stops_at_the_budget_and_doubles_on_the_way():
    ran: list[int] = []
    costs = measure(ran.append, row_bytes=64 << 20, most_seconds=10)
    assert [cost.rows for cost in costs] == [1, 2, 4]
    assert set(ran) == {1, 2, 4}


def test_a_curve_taken_over_is_tried_on_one_row_and_the_largest_batch_is_warmed():
    ran: list[int] = []
    assert profile_still_valid(ran.append, curve(0.1, 0.2, 0.4, 0.8), rows=8, rest=0)
    assert ran[0] == 8
    assert set(ran[1:]) == {1}


def test_a_curve_that_promises_too_much_is_not_taken_over():
    assert not profile_still_valid(
        lambda rows: sum(range(10_000)), curve(1e-9, 1e-9), rows=2, rest=0
    )
