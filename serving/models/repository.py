"""The model repository: finds versions under the bundle directory, loads, serves and unloads them.

`scan` compares what is served with what is on disk. It loads nothing itself: each version is loaded
in a thread of its own, and `find` returns it only when it is ready. A version that is no longer
wanted is not found any more; it finishes its calls and is closed. A bundle that cannot be served is
rejected with a reason. A rejection changes nothing else: the versions that serve continue.

One version is loaded at a time, the newest first, so that measurements do not disturb each other.
But a load that takes longer than SLOW_SECONDS does not keep others waiting.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Final

from latentd import bundle
from latentd.calls.context import CallContext
from latentd.errors import BundleError, ConfigError, ModelNotFound
from latentd.metrics import Metrics
from latentd.models import storage
from latentd.models.inference import ServedModel
from latentd.models.load_markers import content_key
from latentd.models.loads import Load, LoadCancelled, Loads
from latentd.models.rejected import RejectedVersion, RejectedVersions
from latentd.models.storage import Fingerprint
from latentd.models.version_loader import VersionLoader
from latentd.runtime.engine import SessionFactory
from latentd.settings import Settings

log = logging.getLogger(__name__)

_CLOSE_SECONDS: Final = 5.0
"""How long `close` waits for the calls of versions that unload, and for loads to end. The listener
has ended all calls before."""


class Repository:
    """The models of one server. Any thread may look models up; changes hold `_changed`.

    trial_results: a folder that the workers of one server share. None: the server has one process.
    """

    def __init__(
        self,
        settings: Settings,
        engine: SessionFactory,
        metrics: Metrics,
        trial_results: Path | None = None,
    ) -> None:
        """Raises ConfigError for an invalid --pin."""
        self._settings, self._engine, self._metrics = settings, engine, metrics
        self._root = Path(settings.bundles)
        self._pins = storage.parse_pins(settings.pin)
        # Both are replaced, never changed: readers need no lock.
        self._models: dict[str, dict[int, ServedModel]] = {}
        self._listed: list[ServedModel] = []
        self._rejected = RejectedVersions(metrics)
        self._contents: dict[tuple[str, int], Fingerprint] = {}  # of the versions served
        self._changed = threading.Condition(threading.RLock())
        self._loader = VersionLoader(settings, engine, metrics, trial_results)
        self._loads = Loads(self._load, self._on_slow, metrics)
        self._waiting = False  # whether versions wait for a load to end
        self._crashed: set[str] = set()  # models with a version that waits until the server serves
        self._started = False
        self._failure: ConfigError | None = None
        self._closing = False
        self._unload_threads: list[threading.Thread] = []
        self.hangs = False  # after `close`: whether a load has not ended
        self.default = settings.default_model

    @property
    def load_transitions(self) -> int:
        """Counts each start and each end of loading graphs in this process: odd while graphs are
        loaded."""
        return self._loader.transitions

    async def load(self) -> None:
        """Scan for the first time and load. Raises ConfigError if nothing can be served."""
        storage.check_root(self._root)
        # In a thread: scanning and loading block, and the event loop must answer health checks.
        await asyncio.to_thread(self._load_first)
        if self._failure is not None:
            raise self._failure
        if not self._models and not self._closing:
            rejected = "".join(f"\n  {r.name}: {r.reason}" for r in self.rejected())
            raise ConfigError(
                f"No bundle under {self._root} can be served."
                + (rejected or " Bundles are expected in <root>/<model>/<version>/.")
            )
        if self.default and self.default not in self._models:
            raise ConfigError(
                f"--default-model: model {self.default!r} is not served; served models: "
                f"{self._names()}."
            )
        for name in sorted(self._pins.keys() - self._models.keys()):
            log.warning("--pin: model %s is not served; served models: %s.", name, self._names())
        # Clients that name no model keep the only one, also when others are added later.
        if len(self._models) == 1:
            self.default = next(iter(self._models))

    def scan(self) -> None:
        """Start to load versions that are new on disk; unload versions that are gone. Does not wait
        for loads."""
        with self._changed:
            self._scan(regular=True)

    def settle(self) -> None:
        """Block until nothing is being loaded, or the repository closes."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closing or not (self._loads.current() or self._waiting)
            )

    def find(self, name: str, version: int, caller: CallContext) -> ServedModel:
        """The model that serves the call; it stays loaded until the call ends. "" and 0 are the
        defaults. Raises ModelNotFound."""
        while True:
            model = self._find(name, version)
            if model.in_flight.acquire(caller):
                caller.stats.served_by = model.served_by
                return model  # else it was replaced after `_find`, which now finds another

    def peek(self, name: str, version: int) -> ServedModel:
        """The model that `find` would return. It may be unloaded at any time: for descriptions."""
        return self._find(name, version)

    def versions(self, name: str) -> list[int]:
        """The versions of one model that are served, ascending."""
        return sorted(self._models.get(name, {}))

    def models(self) -> list[ServedModel]:
        """Every model version that is served, by name and version."""
        return self._listed

    def rejected(self) -> list[RejectedVersion]:
        """Every version that was rejected, by name and version."""
        return self._rejected.current()

    def loading(self) -> list[Load]:
        """Every version that is being tried or loaded, by name and version."""
        return self._loads.current()

    async def close(self) -> None:
        """Cancel loads, run what is queued in every model, close the models."""
        await asyncio.to_thread(self._cancel_loads)
        self.hangs = not await asyncio.to_thread(self._loads.join, _CLOSE_SECONDS)
        if self.hangs:
            log.warning("A version is still being loaded; exiting without waiting for it.")
        for thread in self._unload_threads:
            await asyncio.to_thread(thread.join, _CLOSE_SECONDS)
        await asyncio.gather(*(asyncio.to_thread(model.close) for model in self.models()))

    def _cancel_loads(self) -> None:
        with self._changed:
            self._closing = True
            for load in self._loads.current():
                load.cancelled = True
            self._changed.notify_all()

    # Lookup.

    def _find(self, name: str, version: int) -> ServedModel:
        models = self._models
        if not name:
            name = self.default
            if not name:
                raise ModelNotFound(
                    "Several models are served and none is the default; set `model` to one of: "
                    f"{self._names()}."
                )
        versions = models.get(name)
        if versions is None:
            raise ModelNotFound(f"Model {name!r} is not served; served models: {self._names()}.")
        model = versions.get(version or max(versions))
        if model is None:
            served = ", ".join(map(str, sorted(versions)))
            raise ModelNotFound(f"{name} version {version} is not served; served: {served}.")
        return model

    def _names(self) -> str:
        return ", ".join(sorted(self._models))

    # Scanning.

    def _load_first(self) -> None:
        """Scan, and block until the server can start: each model has a version that serves, or
        none that can. Versions that crashed a server before are tried only after that."""
        with self._changed:
            self._scan(regular=True)
            self._changed.wait_for(self._can_start)
            self._started = True
            if self._crashed:
                self._scan(regular=False)
            if not self._models:  # every version crashed a server before
                self._changed.wait_for(self._can_start)

    def _can_start(self) -> bool:
        loading = {load.model for load in self._loads.current()}
        return (
            self._closing
            or self._failure is not None
            or not (self._loads.busy() or self._waiting or loading - set(self._models))
        )

    def _scan(self, regular: bool) -> None:
        """regular: also retry what was rejected and has changed since."""
        if self._closing:
            return
        self._waiting, self._crashed = False, set()
        try:
            folders = storage.models(self._root)
            found = [folder for folder in folders if storage.may_have_versions(folder)]
        except BundleError as error:
            self._rejected.add("", 0, error)
            return
        for folder in found:
            self._scan_model(folder, regular)
        if found:  # an empty directory looks like a lost volume: keep what is served
            for name in set(self._models) - {folder.name for folder in folders}:
                self._unload(name, list(self._models[name]))
            for load in self._loads.current():
                load.cancelled |= load.path.parent not in found
        self._rejected.prune()
        self._metrics.last_scan.set_to_current_time()
        self._changed.notify_all()

    def _scan_model(self, folder: Path, regular: bool) -> None:
        """Serve the newest versions of one model that can be served, up to its pin."""
        name = folder.name
        try:
            versions = self._up_to_pin(folder)
        except BundleError as error:
            self._rejected.add(name, 0, error)
            return
        wanted: list[int] = []
        candidates: list[int] = []
        for version in reversed(versions):
            if len(wanted) == self._settings.keep_versions:
                break
            candidates.append(version)
            self._start_load(folder / str(version), version, regular)
            if version in self._models.get(name, {}):
                wanted.append(version)
        self._loads.cancel_others(name, candidates)
        if wanted:  # else keep what is served: a model on disk always has a version that serves
            self._unload(name, [v for v in self._models[name] if v not in wanted])

    def _up_to_pin(self, folder: Path) -> list[int]:
        versions = bundle.versions(folder)
        pin = storage.pin(folder, self._pins)
        if pin is None:
            return versions
        if pin.version not in versions:
            missing = BundleError("pin", f"{pin.source} names this version, which does not exist.")
            self._rejected.add(folder.name, pin.version, missing)
        return [version for version in versions if version <= pin.version]

    def _start_load(self, path: Path, version: int, regular: bool) -> None:
        """Load the version in `path`, unless its present content is served or was rejected."""
        name = path.parent.name
        # Before anything is read, so that the next scan sees changes made during the load.
        content = storage.fingerprint(path)
        if self._rejected.is_known(name, version, content, also_changed=not regular):
            return
        if version in self._models.get(name, {}) and self._contents[name, version] == content:
            return
        load = self._loads.find(name, version)
        if load is not None:
            load.cancelled |= load.content != content and regular
            return
        key = content_key(path, content)
        if not self._started and self._loader.crashes(key):
            log.warning("%s version %d crashed a server while it was loaded.", name, version)
            self._crashed.add(name)
        elif self._loads.busy():
            self._waiting = True
        else:
            self._loads.start(Load(name, version, path, content, key))

    def _on_slow(self, load: Load) -> None:
        with self._changed:
            self._scan(regular=False)  # it starts the next load

    def _load(self, load: Load) -> None:
        """Load a version, then serve or reject it; the whole work of the load's thread."""
        model: ServedModel | None = None
        error: Exception | None = None
        try:
            model = self._loader.load(
                load,
                lambda: self._models.get(load.model, {}),
                lambda: self._loads.mark_slow(load),
            )
        except LoadCancelled:
            pass
        except Exception as raised:  # whatever a bundle causes rejects only that bundle
            error = raised
        with self._changed:
            if model is not None:
                self._serve(model, load.content)
            if isinstance(error, ConfigError):  # a fault of the server, not of the bundle
                self._failure = error
            if error is not None and not self._closing:
                self._rejected.add(load.model, load.version, error, load.content)
            self._loads.finish(load)
            try:
                self._scan(regular=False)  # it starts the next load and unloads the version before
            finally:
                self._changed.notify_all()

    def _serve(self, model: ServedModel, content: Fingerprint) -> None:
        """Let `find` return a new version, or one that replaces the same version with other
        files."""
        name, version = model.manifest.model, model.manifest.version
        replaced = self._models.get(name, {}).get(version)
        if self._closing and model is not replaced:
            model.close()
            return
        self._contents[name, version] = content
        if model is not replaced:
            self._swap_in(name, {**self._models.get(name, {}), version: model})
            self._announce(model)
            if replaced is not None:
                self._close_when_idle(replaced)

    def _announce(self, model: ServedModel) -> None:
        """Log and count that a version is served, and record its profile."""
        name, version, metrics = model.manifest.model, model.manifest.version, self._metrics
        metrics.reloads.labels("loaded", "").inc()
        metrics.models.labels(name, version, model.digest, self._engine.provider).set(1)
        metrics.loaded_at.labels(name, version).set_to_current_time()
        metrics.golden_max_abs_error.labels(name, version).set(model.loaded.golden_max_abs_error)
        log.info("Serving %s version %d (%s).", name, version, model.digest[:19])
        for batcher, profile in model.batchers():
            for size in profile.sizes:
                timings = (f"{one.rows} -> {one.seconds * 1e3:.3g}" for one in size.timings)
                of_size = f" of {list(size.x_shape)}" if model.manifest.axes else ""
                default = size.x_shape == model.manifest.default.x.shape
                log.log(
                    logging.INFO if default else logging.DEBUG,
                    "  %s, %s version %d: batches of up to %d rows%s, %d thread(s); "
                    "batch size -> ms: %s.",
                    *(batcher.name, name, version, profile.max_batch_rows(size.elements)),
                    *(of_size, profile.threads, ", ".join(timings)),
                )
            labels = (batcher.name, name, version)
            metrics.queue_rows_limit.labels(*labels).set(self._settings.queue_rows)
            metrics.max_batch_rows.labels(*labels).set(profile.batch_rows)
            for timing in profile.timings:
                metrics.batch_profile.labels(*labels, timing.rows).set(timing.seconds)

    def _unload(self, name: str, versions: list[int]) -> None:
        """Find these versions no more; close each when its calls have ended."""
        remaining = dict(self._models[name])
        unloaded = [remaining.pop(version) for version in versions]
        self._swap_in(name, remaining)
        for model in unloaded:
            del self._contents[name, model.manifest.version]
            self._metrics.remove_model(name, model.manifest.version)
            self._close_when_idle(model)

    def _close_when_idle(self, model: ServedModel) -> None:
        """Close a model in a thread that first waits for its calls."""

        def close() -> None:
            model.in_flight.drain()
            model.close()
            self._metrics.unloading.dec()
            self._metrics.reloads.labels("unloaded", "").inc()
            log.info("Unloaded %s version %d.", model.manifest.model, model.manifest.version)

        self._metrics.unloading.inc()  # here, not when the thread first runs
        self._unload_threads = [thread for thread in self._unload_threads if thread.is_alive()]
        self._unload_threads.append(threading.Thread(target=close, name="unload", daemon=True))
        self._unload_threads[-1].start()

    def _swap_in(self, name: str, versions: dict[int, ServedModel]) -> None:
        """From now on serve exactly these versions of the model."""
        models = {**self._models, name: versions}
        self._models = {name: models[name] for name in sorted(models) if models[name]}
        self._listed = [of[v] for of in self._models.values() for v in sorted(of)]
