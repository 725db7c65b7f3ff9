"""The bound on requests that have come in part."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from latentd.calls.coroutines import Future
from latentd.errors import Overloaded
from latentd.metrics import Metrics
from latentd.transport import request_memory
from latentd.transport.request_memory import PartialRequests

MOST = 1000


class Heap:
    used = 500

    def __call__(self) -> int:
        return self.used


@pytest.fixture
def heap() -> Heap:
    return Heap()


@pytest.fixture
def waiting(heap) -> PartialRequests:
    return PartialRequests(MOST, Metrics(CollectorRegistry()), heap)


def expect(waiting: PartialRequests, number: int) -> list[Future]:
    replies: list[Future] = [Future() for _ in range(number)]
    for reply in replies:
        waiting.expect(reply)
    return replies


def done(replies: list[Future]) -> list[bool]:
    return [reply.done() for reply in replies]


def test_as_long_as_there_is_room_nobody_is_given_up(heap, waiting):
    replies = expect(waiting, 3)
    waiting.look()
    heap.used += MOST
    for _ in range(5):
        waiting.look()
    assert done(replies) == [False] * 3


def test_the_older_half_is_given_up_and_told_when_to_come_back(heap, waiting):
    replies = expect(waiting, 4)
    waiting.look()
    heap.used += MOST + 1
    waiting.look()
    assert done(replies) == [True, True, False, False]
    with pytest.raises(Overloaded, match="long in coming"):
        replies[0].__await__().__next__()
    waiting.look()
    waiting.look()
    assert done(replies) == [True] * 4


def test_the_more_has_come_the_more_are_given_up_at_once(heap, waiting):
    replies = expect(waiting, 4)
    waiting.look()
    heap.used += 2 * MOST
    waiting.look()
    assert done(replies) == [True, True, True, False], "so that half of the bound is left"


def test_a_message_that_comes_between_two_looks_is_safe(heap, waiting):
    heap.used += MOST + 1
    for _ in range(5):
        reply: Future[bytes] = Future()
        number = waiting.expect(reply)
        waiting.look()
        waiting.came(number)
        reply.set_result(b"")
        waiting.look()
        assert reply.done()
    late = expect(waiting, 1)
    waiting.look()
    waiting.look()
    assert done(late) == [False], "what has grown while nobody was late is not theirs"


def test_what_a_new_version_takes_is_not_held_against_those_who_wait(heap):
    loads = 0
    waiting = PartialRequests(MOST, Metrics(CollectorRegistry()), heap, lambda: loads)
    replies = expect(waiting, 2)
    waiting.look()
    heap.used, loads = heap.used + 10 * MOST, 1  # is being loaded
    waiting.look()
    heap.used += 10 * MOST
    waiting.look()
    heap.used, loads = heap.used + 10 * MOST, 2  # is loaded, between two looks
    waiting.look()
    assert done(replies) == [False, False]
    heap.used += MOST + 1
    waiting.look()
    assert done(replies) == [True, False]


def small(waiting: PartialRequests, number: int) -> list[Future]:
    replies: list[Future] = [Future() for _ in range(number)]
    for reply in replies:
        waiting.expect(reply, small=True)
    return replies


def test_small_ones_are_given_up_before_any_other_and_sooner(heap, waiting):
    large, few = expect(waiting, 2), small(waiting, 2)
    waiting.look()
    heap.used += MOST // 4 + 1
    waiting.look()
    assert done(few) == [True, True]
    assert done(large) == [False, False]


def test_small_ones_cost_the_others_nothing_however_many_come(heap, waiting):
    large = expect(waiting, 2)
    for _ in range(20):
        few = small(waiting, 2)
        waiting.look()
        heap.used += 10 * MOST
        waiting.look()
        assert done(few) == [True, True]
        heap.used -= 10 * MOST
    assert done(large) == [False, False]


def test_small_ones_have_seconds_and_others_any_time(waiting):
    (large,), (few,) = expect(waiting, 1), small(waiting, 1)
    for _ in range(request_memory.SMALL_LOOKS):
        waiting.look()
    assert not few.done(), "it had hardly any time"
    for _ in range(request_memory.SMALL_LOOKS):
        waiting.look()
    assert few.done()
    assert not large.done()


def test_of_too_many_small_ones_the_oldest_is_given_up(waiting):
    replies = small(waiting, request_memory.MOST_SMALL + 2)
    assert done(replies) == [True, True] + [False] * request_memory.MOST_SMALL


def test_the_heap_is_what_is_in_use_and_not_what_it_has_ever_taken():
    used = request_memory.heap()
    before = used()
    blocks = [bytes(10_000) for _ in range(10_000)]
    assert used() - before == pytest.approx(100e6, rel=0.1)
    del blocks
    assert abs(used() - before) < 10e6
