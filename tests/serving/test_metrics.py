"""Histograms add up their observations in bulk, and every scrape sees all of them."""

from __future__ import annotations

import threading

from prometheus_client import CollectorRegistry, generate_latest

from latentd.metrics import MAX_OBSERVED, Histogram, Metrics


def _histogram(registry: CollectorRegistry) -> Histogram:
    return Histogram("seconds", "Of a call.", ["method"], buckets=(0.1, 1.0), registry=registry)


def test_scrape_sees_every_observation_in_its_bucket():
    registry = CollectorRegistry()
    series = _histogram(registry).labels("Sample")
    for seconds in (0.05, 0.1, 0.5, 7.0):
        series.observe(seconds)
    value = registry.get_sample_value
    found = [
        value("seconds_bucket", {"method": "Sample", "le": le}) for le in ("0.1", "1.0", "+Inf")
    ]
    assert found == [2, 3, 4]
    assert value("seconds_sum", {"method": "Sample"}) == 0.05 + 0.1 + 0.5 + 7.0
    series.observe(0.2)
    restricted = generate_latest(registry.restricted_registry(["seconds_count"])).decode()
    assert 'seconds_count{method="Sample"} 5.0' in restricted


def test_observations_do_not_pile_up_without_scrapes():
    series = _histogram(CollectorRegistry()).labels("Sample")
    for _ in range(3 * MAX_OBSERVED):
        series.observe(0.5)
        assert len(series._observed) < MAX_OBSERVED


def test_observations_of_many_threads_and_scrapes_are_counted_once():
    registry = CollectorRegistry()
    series = Metrics(registry).request_seconds.labels("Sample")

    def observe() -> None:
        for _ in range(5_000):
            series.observe(0.5)

    threads = [threading.Thread(target=observe) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        generate_latest(registry)
    name = "latentd_request_seconds_count"
    assert registry.get_sample_value(name, {"method": "Sample"}) == 20_000
