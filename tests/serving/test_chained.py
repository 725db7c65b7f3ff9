"""Both graphs of a version as one, where they are bound: what that costs, when it is left, and what
becomes of a version whose graphs do not run so."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
from awaited import awaited
from hostmemory import buckets, sizes
from opened import BATCH, Opened, images, prepared_with

from serving.errors import BundleError
from serving.models import loading
from serving.runtime import golden
from serving.runtime.bound import BoundGraph
from serving.runtime.chain import Chain
from serving.runtime.engine import Graph
from serving.runtime.tuning import Cost
from serving.settings import Settings


def test_what_both_graphs_cost_is_the_sum_of_what_each_costs(toy_bundles, bound, monkeypatch):
    curves = iter(
        [
            [Cost(1, 0.001), Cost(2, 0.002), Cost(4, 0.003), Cost(8, 0.004)],
            [Cost(1, 0.0005), Cost(2, 0.0006), Cost(4, 0.0007)],
        ]
    )
    monkeypatch.setattr(loading.tuning, "measure", lambda *_: next(curves))
    prepared = prepared_with(toy_bundles, Settings(threads=1))
    assert (prepared.encoder.batch_rows, prepared.decoder.batch_rows) == (8, 4)
    assert prepared.reconstructor.batch_rows == 4
    costs = [(cost.rows, pytest.approx(cost.seconds)) for cost in prepared.reconstructor.costs]
    assert costs == [(1, 0.0015), (2, 0.0026), (4, 0.0037)]


def test_it_can_be_turned_off_and_needs_bound_graphs(open_model, toy_bundles, monkeypatch):
    off = open_model(latents_on_device=False)
    assert off.model.reconstructor is None
    assert [lane.name for lane, _ in off.model.lanes()] == ["encoder", "decoder"]
    np.testing.assert_array_equal(awaited(off.ask(images(3))).x, images(3))
    monkeypatch.undo()  # graphs as they are on a CPU
    assert prepared_with(toy_bundles, Settings(max_batch_rows=BATCH)).reconstructor is None


def test_no_batch_is_tried_that_is_larger_than_those_that_serve(toy_bundles, bound):
    """The toy has two golden rows."""
    prepared = prepared_with(toy_bundles, Settings(max_batch_rows=1))
    for tuned in (prepared.encoder, prepared.decoder, prepared.reconstructor):
        assert sizes(tuned.graph) == [1]


@pytest.fixture
def unchainable(monkeypatch) -> None:
    """As where there is no memory left for the second graph's part."""
    made = BoundGraph.make

    def make(self, rows, copies, takes=None):
        if takes is not None:
            raise RuntimeError("out of memory")
        return made(self, rows, copies)

    monkeypatch.setattr(BoundGraph, "make", make)


def test_where_the_graphs_do_not_run_as_one_the_two_lanes_serve(unchainable, open_model, caplog):
    one = open_model()
    assert one.model.reconstructor is None
    (said,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert said.getMessage() == (
        "toy version 1: Reconstruct takes z through host memory, for its graphs do not run as one: "
        "A graph fails on its golden inputs: out of memory"
    )
    np.testing.assert_array_equal(awaited(one.ask(images(3))).x, images(3))


def test_a_chain_that_computes_something_else_does_not_serve(open_model, caplog, monkeypatch):
    work, chains = Chain.run, set()

    def wrong(self, array, outputs):
        chains.add(self)
        return [given[::-1] for given in work(self, array, outputs)]

    monkeypatch.setattr(Chain, "run", wrong)
    assert open_model().model.reconstructor is None
    assert "differs from the golden output by up to" in caplog.text
    (chain,) = chains
    assert not buckets(chain)


def test_graphs_that_the_attempt_has_broken_are_refused(
    unchainable, toy_bundles, bound, monkeypatch
):
    checked: list[Graph] = []
    check = golden.Golden.check

    def broken_since(self, graph, rows):
        checked.append(graph)
        if checked.count(graph) > 1:
            raise BundleError("golden", "A graph fails on its golden inputs: it is broken.")
        return check(self, graph, rows)

    monkeypatch.setattr(golden.Golden, "check", broken_since)
    with pytest.raises(BundleError, match="it is broken"):
        prepared_with(toy_bundles, Settings(max_batch_rows=BATCH))
    assert not any(buckets(graph) for graph in bound)


def test_the_next_version_takes_the_costs_over_and_has_a_chain_of_its_own(
    open_model, toy_bundles, monkeypatch
):
    monkeypatch.setattr(loading, "REST", 0.0)
    before = open_model().model.prepared
    slow = dataclasses.replace(
        before,
        **{
            name: dataclasses.replace(getattr(before, name), costs=[Cost(1, 10.0), Cost(16, 20.0)])
            for name in ("encoder", "decoder")
        },
    )
    settings = Settings(max_batch_rows=BATCH)
    after = prepared_with(toy_bundles, settings, slow)
    assert after.reconstructor.costs == [Cost(1, 20.0), Cost(16, 40.0)]
    assert after.reconstructor.graph is not before.reconstructor.graph
    Opened(after, settings).close()
