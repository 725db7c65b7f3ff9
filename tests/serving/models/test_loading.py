"""How a graph's runs are measured while it is loaded."""

from __future__ import annotations

import itertools
import time

import pytest

from latentd import bundle
from latentd.models.loading import load_model
from latentd.runtime.engine import SessionFactory
from latentd.runtime.provider import Provider
from latentd.settings import Settings


@pytest.mark.parametrize("threads", [1, 2])
def test_runs_on_one_thread_are_timed_by_its_own_cpu_time(root, monkeypatch, threads):
    """What else the machine does then must not make batches look slow, or choose smaller ones."""
    seconds = itertools.count()
    monkeypatch.setattr(time, "thread_time", lambda: float(next(seconds)))
    toy = bundle.load(root / "toy" / "1")
    settings = Settings(intra_op_threads=threads)
    loaded = load_model(toy, SessionFactory(Provider("cpu")), settings)
    for graph in (loaded.encoder, loaded.decoder):
        assert (graph.profile.timings[0].seconds == 1.0) == (threads == 1)
    again = load_model(toy, SessionFactory(Provider("cpu")), settings, previous=loaded.profile)
    assert again.profile == loaded.profile


def test_model_loads_where_cpu_time_advances_in_ticks(root, monkeypatch):
    real = time.thread_time
    monkeypatch.setattr(time, "thread_time", lambda: real() // 0.01 * 0.01)
    toy = bundle.load(root / "toy" / "1")
    loaded = load_model(toy, SessionFactory(Provider("cpu")), Settings())
    for graph in (loaded.encoder, loaded.decoder):
        assert all(timing.seconds > 0 for timing in graph.profile.timings)
