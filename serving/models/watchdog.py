"""Detects runs that never end and graphs that fail on every input.

A server without calls would notice neither. So the watchdog checks each batcher, and runs a graph
that failed several times in a row on zeros, which cannot be the cause. A graph that works again
counts as recovered. CUDA reports errors that last as long as the process (sticky errors). But a
graph on a GPU may also stay broken without such a report.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Final

from latentd.batching.batcher import Batcher
from latentd.models.inference import ServedModel
from latentd.models.repository import Repository
from latentd.runtime.cuda import CudaError

log = logging.getLogger(__name__)

FAILURES_BEFORE_PROBE: Final = 3
"""Failed runs of a batcher in a row, after which its model is tested."""
MAX_BROKEN_SECONDS: Final = 30.0
"""A graph on a GPU that is broken for longer needs a new process."""


class EngineWatchdog:
    """Checks the models that are served.

    watchdog_seconds: a run that takes longer is considered hung; 0: no limit.
    on_cpu: graphs do not run on a GPU, so a broken graph may always recover.
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
        self._broken: dict[ServedModel, float] = {}  # and since when
        self._device_error = ""  # why nothing runs on the GPU any more

    def fatal_error(self) -> str:
        """A fault that needs a new process, as a sentence; empty: no fault."""
        if self._watchdog_seconds:
            for model, batcher in self._batchers():
                since = batcher.running_since
                if since is not None and self._clock() - since > self._watchdog_seconds:
                    return (
                        f"A run of the {batcher.name} of {_name(model)} exceeded "
                        f"{self._watchdog_seconds:g} s and is considered hung."
                    )
        if not self._on_cpu:
            for model, since in self._broken.items():
                if self._clock() - since > MAX_BROKEN_SECONDS:
                    return f"{_name(model)} has failed on the GPU for {MAX_BROKEN_SECONDS:g} s."
        return self._device_error

    def models_to_probe(self) -> list[ServedModel]:
        """Models to test: those that keep failing, and those that were broken at the last test."""
        failing = {
            model
            for model, batcher in self._batchers()
            if batcher.failures >= FAILURES_BEFORE_PROBE
        }
        return [m for m in self._repository.models() if m in failing or m in self._broken]

    def self_test(self, models: list[ServedModel]) -> str:
        """Run the graphs of each model on a row of zeros; blocks. Returns the names of the broken
        models, separated by commas; empty: none."""
        broken: dict[ServedModel, float] = {}
        for model in models:
            try:
                model.self_test()
            except Exception as error:
                if isinstance(error, CudaError) and error.sticky:
                    self._device_error = f"Unrecoverable CUDA error: {error}."
                if model not in self._broken:
                    log.exception("%s failed the zero-input self-test.", _name(model))
                broken[model] = self._broken.get(model, self._clock())
            else:
                if model in self._broken:
                    log.info("%s recovered.", _name(model))
        self._broken = broken
        return ", ".join(sorted(map(_name, broken)))

    def _batchers(self) -> Iterator[tuple[ServedModel, Batcher]]:
        for model in self._repository.models():
            for batcher, _ in model.batchers():
                yield model, batcher


def _name(model: ServedModel) -> str:
    return f"{model.manifest.model} version {model.manifest.version}"
