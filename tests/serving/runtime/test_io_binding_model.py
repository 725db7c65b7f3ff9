"""A model whose graphs are bound, as on a GPU, without a server. With a gate before its decoder, so
that a test says which rows share a batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from latentd.batching.runner import EngineError
from latentd.errors import Unavailable
from latentd.models.watchdog import EngineWatchdog
from tests.support.bound_model import BATCH, POISON, Gate, Opened, images
from tests.support.fake_device import buckets
from tests.support.wait import result_of


@pytest.fixture
def one(open_model) -> Opened:
    return open_model()


@pytest.fixture
def gate(one) -> Iterator[Gate]:
    gate = Gate(one.model.loaded.decoder.graph)
    yield gate
    gate.open()


@pytest.mark.parametrize(
    ("params", "copied"), [([False, False], ["x"]), ([False, True], ["x", "params"])]
)
def test_only_what_somebody_in_the_batch_wants_is_copied(one, gate, params, copied):
    replies = [one.decode(images(BATCH)), one.decode(images(BATCH))]  # both of the lane's threads
    for _ in replies:
        gate.wait_for_a_run()
    replies += [one.decode(images(2), params=wanted) for wanted in params]
    gate.open()
    for reply in replies:
        result_of(reply)
    assert gate.runs[2:] == [(4, copied)]


def test_closing_finishes_what_waits_and_gives_all_memory_back(one, gate, bound):
    replies = [one.decode(images(7, seed=n), params=bool(n % 2)) for n in range(20)]
    gate.wait_for_a_run()
    closing = threading.Thread(target=one.close)
    closing.start()
    gate.open()
    closing.join()
    for n, reply in enumerate(replies):
        np.testing.assert_array_equal(result_of(reply)[0], images(7, seed=n))
    with pytest.raises(Unavailable):
        one.decode(images(1))
    assert not any(buckets(graph) for graph in bound)
    assert not any(hasattr(graph, "_session") for graph in bound)


def test_a_graph_that_hangs_or_keeps_failing_is_noticed(one, gate):
    now = time.monotonic()
    repository = SimpleNamespace(models=lambda: [one.model])
    vitals = EngineWatchdog(repository, 60.0, on_cpu=False, clock=lambda: now)
    hanging = one.decode(images(1))
    gate.wait_for_a_run()
    assert not vitals.fatal_error()
    now += 1000
    assert "A run of the decoder of toy version 1" in vitals.fatal_error()
    gate.open()
    result_of(hanging)
    for _ in range(3):
        with pytest.raises(EngineError):
            result_of(one.decode(np.full((1, 4, 4), POISON, np.uint8)))
    assert vitals.models_to_probe() == [one.model]
    assert not vitals.self_test([one.model])  # it was these rows' fault
    graph = one.model.loaded.decoder.graph
    graph.run = lambda *_: 1 / 0
    assert vitals.self_test([one.model]) == "toy version 1"
