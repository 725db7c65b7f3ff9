"""Whether the engine still does its work: a run that never ends, a graph that fails on everything.

Neither is seen by calls that are not made. So each lane is looked at, and a graph that has failed
several times running is tried on a row that cannot be to blame. A graph that works again is taken
back. An error of CUDA's that lasts as long as the process is told by CUDA itself; but a graph may
also stay broken on a GPU for reasons that nobody tells.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Final

from latentd.batching.batcher import Batcher
from latentd.models.inference import Model
from latentd.models.repository import Repository
from latentd.runtime.cuda import CudaError

log = logging.getLogger(__name__)

FAILURES_BEFORE_PROBE: Final = 3
"""Failed runs of a lane, none good in between, after which its graphs are tried."""
PATIENCE_SECONDS: Final = 30.0
"""A graph on a GPU that is broken for so long will be so until the process is another."""


class EngineWatchdog:
    """What is wrong with the models in service.

    watchdog_seconds: a run that takes longer is taken for one that never ends; 0: none is.
    on_cpu: graphs do not run on a GPU, so nothing is broken for good.
    """

    def __init__(
        self,
        repository: Repository,
        watchdog_seconds: float,
        on_cpu: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._repository, self._watchdog_seconds = repository, watchdog_seconds
        self._on_cpu, self._clock = on_cpu, clock
        self._broken: dict[Model, float] = {}  # since when
        self._lost = ""  # why nothing runs on the GPU any more

    def fatal_error(self) -> str:
        """What nothing but a new process helps against, as a sentence; empty: nothing."""
        if self._watchdog_seconds:
            for model, batcher in self._batchers():
                since = batcher.running_since
                if since is not None and self._clock() - since > self._watchdog_seconds:
                    return (
                        f"A run of the {batcher.name} of {_name(model)} has taken more than "
                        f"{self._watchdog_seconds:g} s: it has hung."
                    )
        if not self._on_cpu:
            for model, since in self._broken.items():
                if self._clock() - since > PATIENCE_SECONDS:
                    return f"{_name(model)} has failed on the GPU for {PATIENCE_SECONDS:g} s."
        return self._lost

    def models_to_probe(self) -> list[Model]:
        """Models to be tried: those that keep failing, and those found broken before."""
        failing = {
            model
            for model, batcher in self._batchers()
            if batcher.failures >= FAILURES_BEFORE_PROBE
        }
        return [m for m in self._repository.models() if m in failing or m in self._broken]

    def self_test(self, models: list[Model]) -> str:
        """Run the graphs of each on a row of zeros; blocks. Which is broken; empty: none."""
        broken: dict[Model, float] = {}
        for model in models:
            try:
                model.self_test()
            except Exception as error:
                if isinstance(error, CudaError) and error.sticky:
                    self._lost = f"The GPU is lost to this process ({error})."
                if model not in self._broken:
                    log.exception("%s fails on whatever it is given.", _name(model))
                broken[model] = self._broken.get(model, self._clock())
            else:
                if model in self._broken:
                    log.info("%s works again.", _name(model))
        self._broken = broken
        return ", ".join(sorted(map(_name, broken)))

    def _batchers(self) -> Iterator[tuple[Model, Batcher]]:
        for model in self._repository.models():
            for batcher, _ in model.batchers():
                yield model, batcher


def _name(model: Model) -> str:
    return f"{model.manifest.model} version {model.manifest.version}"
