"""A toy model with bound graphs, without a server, and a gate before its decoder."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry

from latentd import bundle
from latentd.calls.context import CallContext
from latentd.calls.coroutines import Future
from latentd.metrics import Metrics
from latentd.models import loading
from latentd.models.inference import ServedModel
from latentd.models.loading import LoadedModel
from latentd.models.sources import GivenLatents
from latentd.runtime.engine import Graph, SessionFactory
from latentd.runtime.provider import Provider
from latentd.settings import Settings
from tests.support.wait import LONG

BATCH = 16
POISON = 13
"""A value that no image has. The decoder fails on latents that have it, divided by 255."""


class Gate:
    """Holds the runs of a decoder until it is opened; a run fails on latents of POISON."""

    def __init__(self, decoder: Graph) -> None:
        self._run, self._started, self._open = (
            decoder.run,
            threading.Semaphore(0),
            threading.Event(),
        )
        self.runs: list[tuple[int, list[str]]] = []  # rows and requested outputs
        decoder.run = self._pass

    def _pass(self, z: np.ndarray, outputs: list[str]) -> list[np.ndarray]:
        self.runs.append((len(z), list(outputs)))
        self._started.release()
        assert self._open.wait(LONG)
        if (np.rint(z * 255) == POISON).any():
            raise RuntimeError("unlucky")
        return self._run(z, outputs)

    def wait_for_run(self) -> None:
        assert self._started.acquire(timeout=LONG)

    def open(self) -> None:
        self._open.set()


class BoundModel:
    """The toy as a served model, and calls to it."""

    def __init__(self, loaded: LoadedModel, settings: Settings) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self.model = ServedModel(loaded, settings, self.metrics)
        self.model.wait_until_ready()
        self._closed = False

    def close(self) -> None:
        """Idempotent."""
        if not self._closed:
            self._closed = True
            self.model.close()

    def decode(self, x: np.ndarray, *, params: bool = False) -> Future:
        """Decode the latents that the decoder turns into these images."""
        z = x.reshape(len(x), -1) / np.float32(255)
        shapes = self.model.manifest.default
        return self.model.decode(GivenLatents(z), shapes, CallContext(), score_output=params)


def load_toy(toy_bundles: Path, settings: Settings) -> LoadedModel:
    toy = bundle.load(toy_bundles / "toy" / "1")
    return loading.load_model(toy, SessionFactory(Provider("cpu")), settings)


def images(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(POISON + 1, 256, (rows, 4, 4), np.uint8)
