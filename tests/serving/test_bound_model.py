"""The reconstructor lane: rows that go through both graphs in one run, where graphs are bound. With
a gate before the chain, so that a test says which rows share a batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from awaited import awaited
from hostmemory import buckets
from opened import BATCH, POISON, Gate, Opened, images

from serving.batching.runner import EngineError
from serving.batching.tasks import Caller, Cancelled
from serving.errors import DeadlineExpired, NotReady, Overloaded
from serving.latents import POSTERIOR, Draw
from serving.models.inference import Reconstruction
from serving.models.vitals import Vitals


@pytest.fixture
def one(open_model) -> Opened:
    return open_model()


@pytest.fixture
def gate(one) -> Iterator[Gate]:
    gate = Gate(one.model.prepared.reconstructor.graph)
    yield gate
    gate.open()


def same(found: Reconstruction, expected: Reconstruction) -> None:
    """As far as the call had asked for it."""
    np.testing.assert_array_equal(found.x, expected.x)
    if expected.scores is not None:
        for field in ("kl", "elbo", "reconstruction_error"):
            scores = [getattr(made.scores, field) for made in (found, expected)]
            np.testing.assert_allclose(*scores, rtol=1e-6)


def test_each_gets_what_the_two_lanes_would_give_however_they_share_batches(one, gate, open_model):
    other = open_model(latents_on_device=False)
    first = one.ask(images(1))
    gate.wait_for_a_run()
    asked = {
        name: (images(rows, seed=rows), wanted)
        for name, rows, wanted in (
            ("plain", 2, {}),
            ("scores", 3, {"scores": True}),
            ("latents", 4, {"latents": True}),
            ("large", 20, {"scores": True}),  # more than a batch
        )
    }
    replies = {name: one.ask(x, **wanted) for name, (x, wanted) in asked.items()}
    gate.open()
    np.testing.assert_array_equal(awaited(first).x, images(1))
    for name, (x, wanted) in asked.items():
        found, expected = awaited(replies[name]), awaited(other.ask(x, **wanted))
        same(found, expected)
        if wanted:
            np.testing.assert_array_equal(found.mean, expected.mean)
            np.testing.assert_array_equal(found.log_var, expected.log_var)
    assert gate.runs[0] == (1, ["x"])
    assert max(rows for rows, _ in gate.runs) == BATCH
    assert one.metric("batch_rows_sum") == 30
    assert one.metric("batch_rows_sum", lane="encoder") == 0
    assert one.metric("batch_rows_sum", lane="decoder") == 0


@pytest.mark.parametrize(
    ("asked", "copied"),
    [
        ([{}, {}], ["x"]),
        ([{}, {"latents": True}], ["x", "mean", "log_var"]),
        ([{"scores": True}, {}], ["x", "params", "mean", "log_var"]),
    ],
)
def test_only_what_somebody_in_the_batch_wants_is_copied(one, gate, asked, copied):
    replies = [one.ask(images(BATCH)), one.ask(images(BATCH))]  # both of the lane's threads
    for _ in replies:
        gate.wait_for_a_run()
    replies += [one.ask(images(2), **wanted) for wanted in asked]
    gate.open()
    for reply in replies:
        awaited(reply)
    assert gate.runs[2:] == [(4, copied)]


def test_draws_go_the_longer_way(one, gate, open_model):
    draw = Draw(7, 0, 5, POSTERIOR)
    found = awaited(one.ask(images(5), draw=draw, scores=True))
    same(found, awaited(open_model(latents_on_device=False).ask(images(5), draw=draw, scores=True)))
    assert not gate.runs
    assert one.metric("batch_rows_sum", lane="decoder") == 5


def test_a_row_that_the_graphs_fail_on_fails_alone(one, gate):
    first = one.ask(images(1))
    gate.wait_for_a_run()
    good = [one.ask(images(3, seed=n)) for n in range(3)]
    bad = one.ask(np.full((1, 4, 4), POISON, np.uint8))
    gate.open()
    awaited(first)
    with pytest.raises(EngineError, match="The reconstructor failed on these rows"):
        awaited(bad)
    for n, reply in enumerate(good):
        np.testing.assert_array_equal(awaited(reply).x, images(3, seed=n))


def test_the_late_and_the_cancelled_are_never_run(one, gate):
    first = one.ask(images(1))
    gate.wait_for_a_run()
    late, gone = Caller(time.monotonic() + 0.05), Caller()
    replies = [one.ask(images(2), late), one.ask(images(3), gone)]
    patient = one.ask(images(4))
    gone.cancel()
    while time.monotonic() < late.deadline:
        pass
    gate.open()
    awaited(first)
    awaited(patient)
    for reply, error in zip(replies, (DeadlineExpired, Cancelled), strict=True):
        with pytest.raises(error):
            awaited(reply)
    assert [rows for rows, _ in gate.runs] == [1, 4]
    assert one.metric("dropped_total", reason="expired") == 1
    assert one.metric("dropped_total", reason="cancelled") == 1


def test_what_is_too_much_is_refused(open_model):
    one = open_model(queue_rows=4)
    gate = Gate(one.model.prepared.reconstructor.graph)
    replies = [one.ask(images(1))]
    gate.wait_for_a_run()
    replies.append(one.ask(images(4)))
    refused = one.ask(images(1))
    with pytest.raises(Overloaded):
        awaited(refused)
    assert one.metric("shed_total", reason="queue_full") == 1
    assert one.metric("queue_rows", model="toy", version="1") == 4
    gate.open()
    for reply in replies:
        awaited(reply)


def test_a_call_is_told_what_it_cost(one):
    caller = Caller()
    awaited(one.ask(images(5), caller))
    rows, waited, ran = caller.account.sum()
    assert rows == 5
    assert waited >= 0
    assert ran > 0


def test_closing_finishes_what_waits_and_gives_all_memory_back(one, gate, bound):
    replies = [one.ask(images(7, seed=n), scores=bool(n % 2)) for n in range(20)]
    gate.wait_for_a_run()
    closing = threading.Thread(target=one.close)
    closing.start()
    gate.open()
    closing.join()
    for n, reply in enumerate(replies):
        np.testing.assert_array_equal(awaited(reply).x, images(7, seed=n))
    with pytest.raises(NotReady):
        awaited(one.ask(images(1)))
    assert not buckets(one.model.prepared.reconstructor.graph)
    assert not any(buckets(graph) for graph in bound)
    assert not any(hasattr(graph, "_session") for graph in bound)


def test_the_chain_is_closed_while_its_graphs_are_open(one, monkeypatch):
    order: list[str] = []
    for lane, tuned in one.model.lanes():
        lane_close, graph_close = lane.close, tuned.graph.close

        def close(name: str, act: Callable[[], None]) -> None:
            order.append(name)
            act()

        monkeypatch.setattr(lane, "close", lambda n=lane.name, a=lane_close: close(f"{n} lane", a))
        monkeypatch.setattr(tuned.graph, "close", lambda n=lane.name, a=graph_close: close(n, a))
    one.close()
    lanes, graphs = order[:3], order[3:]
    assert all(name.endswith("lane") for name in lanes)
    assert lanes.index("encoder lane") < lanes.index("decoder lane")  # which it feeds
    assert graphs[0] == "reconstructor"
    monkeypatch.undo()


def test_a_chain_that_hangs_or_keeps_failing_is_noticed(one, gate):
    now = time.monotonic()
    repository = SimpleNamespace(models=lambda: [one.model])
    vitals = Vitals(repository, 60.0, on_cpu=False, clock=lambda: now)
    hanging = one.ask(images(1))
    gate.wait_for_a_run()
    assert not vitals.beyond_help()
    now += 1000
    assert "A run of the reconstructor of toy version 1" in vitals.beyond_help()
    gate.open()
    awaited(hanging)
    for _ in range(3):
        with pytest.raises(EngineError):
            awaited(one.ask(np.full((1, 4, 4), POISON, np.uint8)))
    assert vitals.suspicious() == [one.model]
    assert not vitals.try_out([one.model])  # it was these rows' fault
    graph = one.model.prepared.reconstructor.graph
    graph.run = lambda *_: 1 / 0
    assert vitals.try_out([one.model]) == "toy version 1"
