"""A model whose graphs are bound, as on a GPU, without a server. A gate before its decoder lets a
test decide which rows share a batch."""

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
from tests.support.bound_model import BATCH, POISON, BoundModel, Gate, images
from tests.support.fake_device import buckets
from tests.support.wait import result_of


@pytest.fixture
def one(open_model) -> BoundModel:
    return open_model()


@pytest.fixture
def gate(one) -> Iterator[Gate]:
    gate = Gate(one.model.loaded.decoder.graph)
    yield gate
    gate.open()


@pytest.mark.parametrize(
    ("params", "copied"), [([False, False], ["x"]), ([False, True], ["x", "params"])]
)
def test_only_requested_outputs_are_copied(one, gate, params, copied):
    futures = [
        one.decode(images(BATCH)),
        one.decode(images(BATCH)),
    ]  # both of the batcher's threads
    for _ in futures:
        gate.wait_for_run()
    futures += [one.decode(images(2), params=wanted) for wanted in params]
    gate.open()
    for future in futures:
        result_of(future)
    assert gate.runs[2:] == [(4, copied)]


def test_close_runs_waiting_rows_and_frees_all_memory(one, gate, bound):
    futures = [one.decode(images(7, seed=n), params=bool(n % 2)) for n in range(20)]
    gate.wait_for_run()
    closing = threading.Thread(target=one.close)
    closing.start()
    gate.open()
    closing.join()
    for n, future in enumerate(futures):
        np.testing.assert_array_equal(result_of(future)[0], images(7, seed=n))
    with pytest.raises(Unavailable):
        one.decode(images(1))
    assert not any(buckets(graph) for graph in bound)
    assert not any(hasattr(graph, "_session") for graph in bound)


def test_watchdog_notices_a_graph_that_hangs_or_keeps_failing(one, gate):
    now = time.monotonic()
    repository = SimpleNamespace(models=lambda: [one.model])
    watchdog = EngineWatchdog(repository, 60.0, on_cpu=False, clock=lambda: now)
    hanging = one.decode(images(1))
    gate.wait_for_run()
    assert not watchdog.fatal_error()
    now += 1000
    assert "A run of the decoder of toy version 1" in watchdog.fatal_error()
    gate.open()
    result_of(hanging)
    for _ in range(3):
        with pytest.raises(EngineError):
            result_of(one.decode(np.full((1, 4, 4), POISON, np.uint8)))
    assert watchdog.models_to_probe() == [one.model]
    assert not watchdog.self_test([one.model])  # only these rows fail
    graph = one.model.loaded.decoder.graph
    graph.run = lambda *_: 1 / 0
    assert watchdog.self_test([one.model]) == "toy version 1"
