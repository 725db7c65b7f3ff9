"""A model of the toy's whose graphs are bound, without a server, and a gate before its chain."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from awaited import LONG
from prometheus_client import CollectorRegistry

from serving import bundle
from serving.batching.tasks import Caller, Reply, spawn
from serving.metrics import Metrics
from serving.models import loading
from serving.models.inference import Model
from serving.models.loading import Prepared
from serving.runtime.chain import Chain
from serving.runtime.engine import Engine
from serving.runtime.provider import Provider
from serving.settings import Settings

BATCH = 16
POISON = 13


class Gate:
    """Before the chain: a run waits until it may pass, and fails on POISON."""

    def __init__(self, chain: Chain) -> None:
        self._run, self._came, self._open = chain.run, threading.Semaphore(0), threading.Event()
        self.runs: list[tuple[int, list[str]]] = []  # rows and what was asked for
        chain.run = self._pass

    def _pass(self, x: np.ndarray, outputs: list[str]) -> list[np.ndarray]:
        self.runs.append((len(x), list(outputs)))
        self._came.release()
        assert self._open.wait(LONG)
        if (x == POISON).any():
            raise RuntimeError("unlucky")
        return self._run(x, outputs)

    def wait_for_a_run(self) -> None:
        assert self._came.acquire(timeout=LONG)

    def open(self) -> None:
        self._open.set()


class Opened:
    """A model of the toy's, and calls to it."""

    def __init__(self, prepared: Prepared, settings: Settings) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self.model = Model(prepared, settings, self.metrics)
        self.model.wait_until_begun()
        self._closed = False

    def close(self) -> None:
        """Again is nothing."""
        if not self._closed:
            self._closed = True
            self.model.close()

    def ask(self, x: np.ndarray, caller: Caller | None = None, **wanted: bool) -> Reply:
        draw, scores = wanted.pop("draw", None), wanted.pop("scores", False)
        call = self.model.reconstruct(x, draw, scores, caller or Caller(), **wanted)
        return spawn(call)

    def metric(self, name: str, **labels: str) -> float:
        labels = {"lane": "reconstructor"} | labels
        return self.metrics.registry.get_sample_value(f"latentd_{name}", labels) or 0.0


def prepared_with(
    toy_bundles: Path, settings: Settings, before: Prepared | None = None
) -> Prepared:
    toy = bundle.load(toy_bundles / "toy" / "1")
    return loading.prepare(toy, Engine(Provider("cpu")), settings, before)


def images(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(POISON + 1, 256, (rows, 4, 4), np.uint8)
