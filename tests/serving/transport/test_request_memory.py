"""The memory limit for requests that have arrived only in part."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from latentd.calls.coroutines import Future
from latentd.errors import Overloaded
from latentd.metrics import Metrics
from latentd.transport import request_memory
from latentd.transport.request_memory import PartialRequests

LIMIT = 1000


class Heap:
    used = 500

    def __call__(self) -> int:
        return self.used


@pytest.fixture
def heap() -> Heap:
    return Heap()


@pytest.fixture
def requests(heap) -> PartialRequests:
    return PartialRequests(LIMIT, Metrics(CollectorRegistry()), heap)


def begin(requests: PartialRequests, number: int, small: bool = False) -> list[Future]:
    futures: list[Future] = [Future() for _ in range(number)]
    for future in futures:
        requests.begin(future, small)
    return futures


def done(futures: list[Future]) -> list[bool]:
    return [future.done() for future in futures]


def test_no_request_is_dropped_below_the_limit(heap, requests):
    futures = begin(requests, 3)
    requests.enforce()
    heap.used += LIMIT
    for _ in range(5):
        requests.enforce()
    assert done(futures) == [False] * 3


def test_older_half_is_dropped_beyond_the_limit(heap, requests):
    futures = begin(requests, 4)
    requests.enforce()
    heap.used += LIMIT + 1
    requests.enforce()
    assert done(futures) == [True, True, False, False]
    with pytest.raises(Overloaded, match=r"not received completely in time; .* Retry in"):
        futures[0].__await__().__next__()
    requests.enforce()
    requests.enforce()
    assert done(futures) == [True] * 4


def test_more_requests_are_dropped_the_more_memory_is_used(heap, requests):
    futures = begin(requests, 4)
    requests.enforce()
    heap.used += 2 * LIMIT
    requests.enforce()
    assert done(futures) == [True, True, True, False], "half of the limit must be left"


def test_request_that_arrives_between_two_checks_is_not_dropped(heap, requests):
    heap.used += LIMIT + 1
    for _ in range(5):
        future: Future[bytes] = Future()
        number = requests.begin(future)
        requests.enforce()
        requests.complete(number)
        future.set_result(b"")
        requests.enforce()
        assert future.done()
    overdue = begin(requests, 1)
    requests.enforce()
    requests.enforce()
    assert done(overdue) == [False], "memory that grew while no request was overdue does not count"


def test_memory_of_a_version_that_loads_does_not_count(heap):
    loads = 0
    requests = PartialRequests(LIMIT, Metrics(CollectorRegistry()), heap, lambda: loads)
    futures = begin(requests, 2)
    requests.enforce()
    heap.used, loads = heap.used + 10 * LIMIT, 1  # the load has started
    requests.enforce()
    heap.used += 10 * LIMIT
    requests.enforce()
    heap.used, loads = heap.used + 10 * LIMIT, 2  # it has ended between two checks
    requests.enforce()
    assert done(futures) == [False, False]
    heap.used += LIMIT + 1
    requests.enforce()
    assert done(futures) == [True, False]


def test_small_requests_are_dropped_first(heap, requests):
    large, small = begin(requests, 2), begin(requests, 2, small=True)
    requests.enforce()
    heap.used += LIMIT // 4 + 1
    requests.enforce()
    assert done(small) == [True, True]
    assert done(large) == [False, False]


def test_others_are_not_dropped_however_many_small_requests_there_are(heap, requests):
    large = begin(requests, 2)
    for _ in range(20):
        small = begin(requests, 2, small=True)
        requests.enforce()
        heap.used += 10 * LIMIT
        requests.enforce()
        assert done(small) == [True, True]
        heap.used -= 10 * LIMIT
    assert done(large) == [False, False]


def test_only_small_requests_expire(requests):
    (large,), (small,) = begin(requests, 1), begin(requests, 1, small=True)
    for _ in range(request_memory.SMALL_CHECKS):
        requests.enforce()
    assert not small.done(), "it has hardly waited"
    for _ in range(request_memory.SMALL_CHECKS):
        requests.enforce()
    assert small.done()
    assert not large.done()


def test_oldest_small_request_is_dropped_when_there_are_too_many(requests):
    futures = begin(requests, request_memory.MAX_SMALL + 2, small=True)
    assert done(futures) == [True, True] + [False] * request_memory.MAX_SMALL


def test_heap_bytes_are_what_is_in_use():
    used = request_memory.heap_bytes()
    before = used()
    blocks = [bytes(10_000) for _ in range(10_000)]
    assert used() - before == pytest.approx(100e6, rel=0.1)
    del blocks
    assert abs(used() - before) < 10e6
