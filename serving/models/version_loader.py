"""From a version on disk to a model that can be looked up: noted, tried elsewhere, opened here."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from latentd import bundle
from latentd.errors import BundleError
from latentd.metrics import Metrics
from latentd.models import trial
from latentd.models.attempts import Attempts
from latentd.models.inference import Model
from latentd.models.loading import LoadedModel, Measurements, prepare
from latentd.models.loads import Load
from latentd.models.trial_results import TrialResult, TrialResults
from latentd.runtime.engine import SessionFactory
from latentd.settings import Settings

log = logging.getLogger(__name__)

Served = Callable[[], dict[int, Model]]
"""Gives the versions of the model that serve now, by number."""


class VersionLoader:
    """Opens versions, each in the thread that asks for it.

    verdicts: a folder that the workers of one server share; None: this is its only process.
    """

    def __init__(
        self,
        settings: Settings,
        engine: SessionFactory,
        metrics: Metrics,
        trial_results: Path | None,
    ) -> None:
        self._settings, self._engine, self._metrics = settings, engine, metrics
        self._attempts, self._verdicts = Attempts(settings.state), TrialResults(trial_results)
        self._opening = threading.Lock()  # one version at a time is opened in this process
        self.loads = 0  # begun and ended, each counted: odd while a version is opened

    def ended_in(self, key: str) -> int:
        """How many processes died while they loaded what `key` names."""
        return self._attempts.ended_in(key)

    def open(self, load: Load, served: Served, on_wait: Callable[[], None]) -> Model:
        """A model that is ready to serve; the one that serves already where it has these files.

        on_wait: called once when another worker is at it. Raises Cancelled when the load is not
        wanted any more, BundleError, ConfigError, and whatever else a bundle makes of us.
        """
        if self.ended_in(load.key) > self._settings.workers:
            raise BundleError(
                "crash",
                "The server has ended again and again while it loaded this version. Publish "
                "another one. (Touch one of its files to have it tried again.)",
            )
        with self._attempts.note(load.key):
            most = trial.most_bytes(self._settings)
            digest = _verified(load, most)
            same = served().get(load.version)
            if same is not None and same.digest == digest:
                return same
            # No bytes of it are kept meanwhile: a trial takes memory enough.
            tried = self._tried(load, served, on_wait) if self._settings.load_trial else None
            checked = bundle.load(load.path, most)
            if checked.digest != digest or (tried and tried.digest != digest):
                raise BundleError("checksum", "Its files changed while it was loaded.")
            with self._opening:
                load.go_on()
                return self._opened(checked, served, tried.measurements if tried else None)

    def _tried(self, load: Load, served: Served, on_wait: Callable[[], None]) -> TrialResult:
        """What the version's graphs cost, found out where it can harm nothing."""
        settings = self._settings
        if self._engine.on_cpu:
            settings = dataclasses.replace(settings, provider="cpu")
        before = _newest(served())

        def find() -> TrialResult:
            return trial.run(load.path, settings, before, load.go_on)

        def wait() -> None:
            load.go_on()
            if not load.slow:
                on_wait()

        return self._verdicts.get(load.key, find, wait)

    def _opened(self, checked: bundle.Bundle, served: Served, tried: Measurements | None) -> Model:
        name, version = checked.manifest.model, checked.manifest.version
        self.loads += 1
        try:
            prepared = prepare(checked, self._engine, self._settings, _newest(served()), tried)
            # Deleted and published anew between two looks: digests tell answers apart.
            if version in served():
                log.warning("%s version %d has other content than it had.", name, version)
                self._metrics.remove_model(name, version)  # its successor's series have its labels
            return self._begun(prepared)
        finally:
            self.loads += 1

    def _begun(self, prepared: LoadedModel) -> Model:
        """A model whose lanes are ready. Raises what one of them fails with."""
        model = Model(prepared, self._settings, self._metrics)
        try:
            model.wait_until_ready()
        except Exception:
            model.close()
            self._metrics.remove_model(model.manifest.model, model.manifest.version)
            raise
        return model


def _newest(served: dict[int, Model]) -> Measurements | None:
    return served[max(served)].prepared.measurements if served else None


def _verified(load: Load, most_bytes: int) -> str:
    """The digest of a bundle whose files are right; says which other files lie beside them."""
    found = bundle.load(load.path, most_bytes)
    if found.stray:
        log.warning(
            "%s version %d: its folder holds files that its manifest does not name; they are "
            "ignored: %s.",
            *(load.model, load.version, ", ".join(map(ascii, found.stray))),
        )
    return found.digest
