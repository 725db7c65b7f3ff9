"""Loads one version in steps: verify its files, try it in a child process, then load it here.

1. Mark the load on disk (`load_markers`), so that a crash is known after a restart.
2. Verify the files. If the served version has the same files, keep that one.
3. Try the bundle in a child process (`trial`), or wait for another worker's result
   (`trial_results`).
4. Load and check the graphs in this process (`loading`), with the profile that the trial measured.
5. Start the batchers (`inference`). The repository then serves the model.
"""

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
from latentd.models.inference import ServedModel
from latentd.models.load_markers import LoadMarkers
from latentd.models.loading import LoadedModel, load_model
from latentd.models.loads import Load
from latentd.models.profile import ModelProfile
from latentd.models.trial_results import TrialResult, TrialResults
from latentd.runtime.engine import SessionFactory
from latentd.settings import Settings

log = logging.getLogger(__name__)

ServedVersions = Callable[[], dict[int, ServedModel]]
"""Returns the versions of the model that are served now, by number."""


class VersionLoader:
    """Loads versions, each in the thread of the caller.

    trial_results: a folder that the workers of one server share. None: the server has one process.
    """

    def __init__(
        self,
        settings: Settings,
        engine: SessionFactory,
        metrics: Metrics,
        trial_results: Path | None,
    ) -> None:
        self._settings, self._engine, self._metrics = settings, engine, metrics
        self._markers, self._trials = LoadMarkers(settings.state), TrialResults(trial_results)
        self._load_lock = threading.Lock()  # this process loads the graphs of one version at a time
        # Counts each start and each end of step 4 and 5: odd while graphs are loaded.
        self.transitions = 0

    def crashes(self, key: str) -> int:
        """How many processes died while they loaded this content."""
        return self._markers.crashes(key)

    def load(
        self, load: Load, served: ServedVersions, on_other_worker: Callable[[], None]
    ) -> ServedModel:
        """A model that is ready to serve; the served one if it has the same files.

        on_other_worker: called once if another worker runs the trial. Raises LoadCancelled after
        the load was cancelled, BundleError, ConfigError, and any error that a bundle causes.
        """
        if self.crashes(load.key) > self._settings.workers:
            raise BundleError(
                "crash",
                "The server has crashed repeatedly while it loaded this version. Publish another "
                "version, or touch one of its files to retry.",
            )
        with self._markers.mark(load.key):
            max_bytes = trial.max_load_bytes(self._settings)
            digest = _verify(load, max_bytes)
            same = served().get(load.version)
            if same is not None and same.digest == digest:
                return same
            # The verified bytes are not kept during the trial, which needs memory itself.
            result = self._try(load, served, on_other_worker) if self._settings.load_trial else None
            verified = bundle.load(load.path, max_bytes)
            if verified.digest != digest or (result and result.digest != digest):
                raise BundleError("checksum", "Its files changed while it was loaded.")
            with self._load_lock:
                load.raise_if_cancelled()
                return self._load_here(verified, served, result.profile if result else None)

    def _try(
        self, load: Load, served: ServedVersions, on_other_worker: Callable[[], None]
    ) -> TrialResult:
        settings = self._settings
        if self._engine.on_cpu:
            settings = dataclasses.replace(settings, provider="cpu")
        previous = _newest_profile(served())

        def run_trial() -> TrialResult:
            return trial.run(load.path, settings, previous, load.raise_if_cancelled)

        def on_wait() -> None:
            load.raise_if_cancelled()
            if not load.slow:
                on_other_worker()

        return self._trials.get(load.key, run_trial, on_wait)

    def _load_here(
        self, verified: bundle.Bundle, served: ServedVersions, measured: ModelProfile | None
    ) -> ServedModel:
        name, version = verified.manifest.model, verified.manifest.version
        self.transitions += 1
        try:
            previous = _newest_profile(served())
            loaded = load_model(verified, self._engine, self._settings, previous, measured)
            # Clients tell the two apart by the digest in each response.
            if version in served():
                log.warning("%s version %d changed on disk; replacing it.", name, version)
                self._metrics.remove_model(name, version)  # the new series have the same labels
            return self._start(loaded)
        finally:
            self.transitions += 1

    def _start(self, loaded: LoadedModel) -> ServedModel:
        """Start the batchers and wait until they are ready. Raises what one of them raises."""
        model = ServedModel(loaded, self._settings, self._metrics)
        try:
            model.wait_until_ready()
        except Exception:
            model.close()
            self._metrics.remove_model(model.manifest.model, model.manifest.version)
            raise
        return model


def _newest_profile(served: dict[int, ServedModel]) -> ModelProfile | None:
    return served[max(served)].loaded.profile if served else None


def _verify(load: Load, max_bytes: int) -> str:
    """Verify the bundle's files and return its digest; log the other files in its folder."""
    verified = bundle.load(load.path, max_bytes)
    if verified.stray:
        log.warning(
            "%s version %d: its folder holds files that its manifest does not name; they are "
            "ignored: %s.",
            *(load.model, load.version, ", ".join(map(ascii, verified.stray))),
        )
    return verified.digest
