"""Which models are served: found under a root, verified, opened, looked up by name, and let go of.

`look` brings what is served in line with what lies under the root. It loads nothing itself: each
version is loaded in a thread of its own, tried first in another process, and looked up only when it
is wholly open. One that is no longer wanted is looked up no more, finishes the calls that hold it
and is closed. A bundle that cannot be served is refused with its reason and changes nothing:
whatever served before it serves on.

One version is loaded at a time, the newest first, so that what is measured is not each other. But
one that is slow to load does not keep others waiting for longer than SLOW_SECONDS.
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
from latentd.models import attempts, storage
from latentd.models.inference import Model
from latentd.models.loads import Cancelled, Load, Loads
from latentd.models.rejected import RejectedVersion, RejectedVersions
from latentd.models.storage import Fingerprint
from latentd.models.version_loader import VersionLoader
from latentd.runtime.engine import SessionFactory
from latentd.settings import Settings

log = logging.getLogger(__name__)

_LAST_CALLS_SECONDS: Final = 5.0
"""How long `close` waits for calls on retired versions, and for the end of loads. The listener has
ended all calls before."""


class Repository:
    """The models of one server. Looked up in any thread; changed while `_changed` is held.

    verdicts: a folder that the workers of one server share; None: this is its only process.
    """

    def __init__(
        self,
        settings: Settings,
        engine: SessionFactory,
        metrics: Metrics,
        trial_results: Path | None = None,
    ) -> None:
        """Raises ConfigError for pins that cannot be read."""
        self._settings, self._engine, self._metrics = settings, engine, metrics
        self._root = Path(settings.bundles)
        self._pins = storage.read_pins(settings.pin)
        # Both are replaced and never changed, so that those who look up need no lock.
        self._models: dict[str, dict[int, Model]] = {}
        self._listed: list[Model] = []
        self._refusals = RejectedVersions(metrics)
        self._contents: dict[tuple[str, int], Fingerprint] = {}  # of what is served
        self._changed = threading.Condition(threading.RLock())
        self._opener = VersionLoader(settings, engine, metrics, trial_results)
        self._loads = Loads(self._load, self._on_slow, metrics)
        self._waiting = False  # versions were found that are to be loaded after others
        self._last: set[str] = set()  # models of which a version waits until the server serves
        self._started = False
        self._failure: ConfigError | None = None
        self._closing = False
        self._draining: list[threading.Thread] = []
        self.hangs = False  # after `close`: a load has not ended
        self.default = settings.default_model

    @property
    def loads(self) -> int:
        """Begun and ended in this process, each counted: odd while a version is loaded."""
        return self._opener.loads

    async def load(self) -> None:
        """The first look. Raises ConfigError when nothing can be served."""
        storage.check_root(self._root)
        # Looking, hashing and loading block: the event loop must go on answering health.
        await asyncio.to_thread(self._load_first)
        if self._failure is not None:
            raise self._failure
        if not self._models and not self._closing:
            refused = "".join(f"\n  {r.name}: {r.reason}" for r in self.refused())
            raise ConfigError(
                f"No bundle under {self._root} can be served."
                + (refused or " Bundles are expected in <root>/<model>/<version>/.")
            )
        if self.default and self.default not in self._models:
            raise ConfigError(
                f"The default model {self.default!r} is not among those served: {self._names()}."
            )
        for name in sorted(self._pins.keys() - self._models.keys()):
            log.warning("--pin names %s, which is not among those served: %s.", name, self._names())
        if len(self._models) == 1:  # and stays so when others come: who names none goes on
            self.default = next(iter(self._models))

    def look(self) -> None:
        """See what lies under the root now: begin to load what is new, serve no more what is gone.
        Waits for no load."""
        with self._changed:
            self._look(regular=True)

    def settle(self) -> None:
        """Block until nothing is being loaded, or the repository closes."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closing or not (self._loads.standing() or self._waiting)
            )

    def find(self, name: str, version: int, caller: CallContext) -> Model:
        """The model that answers, held until the caller's call has ended; "" and 0 are the
        defaults. Raises ModelNotFound."""
        while True:
            model = self._find(name, version)
            if model.in_flight.acquire(caller):
                return model  # else it was replaced just now, and is found no more

    def versions(self, name: str) -> list[int]:
        """The versions of one model that are served, ascending."""
        return sorted(self._models.get(name, {}))

    def models(self) -> list[Model]:
        """Every model served, by name and version."""
        return self._listed

    def refused(self) -> list[RejectedVersion]:
        """What was found and is not served, by name and version."""
        return self._refusals.standing()

    def loading(self) -> list[Load]:
        """What is being tried or loaded, by name and version."""
        return self._loads.standing()

    async def close(self) -> None:
        """Finish what waits everywhere; give up what is being loaded."""
        await asyncio.to_thread(self._stop_looking)
        self.hangs = not await asyncio.to_thread(self._loads.join, _LAST_CALLS_SECONDS)
        if self.hangs:
            log.warning("A version that is being loaded does not come to an end; it is left there.")
        for thread in self._draining:
            await asyncio.to_thread(thread.join, _LAST_CALLS_SECONDS)
        await asyncio.gather(*(asyncio.to_thread(model.close) for model in self.models()))

    def _stop_looking(self) -> None:
        with self._changed:
            self._closing = True
            for load in self._loads.standing():
                load.wanted = False
            self._changed.notify_all()

    # For those who look up.

    def _find(self, name: str, version: int) -> Model:
        models = self._models
        if not name:
            name = self.default
            if not name:
                raise ModelNotFound(
                    f"This server has several models and no default: name one of {self._names()}."
                )
        versions = models.get(name)
        if versions is None:
            raise ModelNotFound(f"No model {name!r} is served here; there is {self._names()}.")
        model = versions.get(version or max(versions))
        if model is None:
            served = ", ".join(map(str, sorted(versions)))
            raise ModelNotFound(f"{name} has no version {version} here; served: {served}.")
        return model

    def _names(self) -> str:
        return ", ".join(sorted(self._models))

    # For `look`.

    def _load_first(self) -> None:
        """Look, and block until the server can begin to serve: each model has a version that does,
        or none that could; those that ended the server before are tried only after that."""
        with self._changed:
            self._look(regular=True)
            self._changed.wait_for(self._is_settled)
            self._started = True
            if self._last:
                self._look(regular=False)
            if not self._models:  # there are only such as ended the server before
                self._changed.wait_for(self._is_settled)

    def _is_settled(self) -> bool:
        loading = {load.model for load in self._loads.standing()}
        return (
            self._closing
            or self._failure is not None
            or not (self._loads.busy() or self._waiting or loading - set(self._models))
        )

    def _look(self, regular: bool) -> None:
        """regular: also load again what was refused and has changed since."""
        if self._closing:
            return
        self._waiting, self._last = False, set()
        try:
            folders = storage.models(self._root)
            found = [folder for folder in folders if storage.may_have_versions(folder)]
        except BundleError as error:
            self._refusals.add("", 0, error)
            return
        for folder in found:
            self._look_at(folder, regular)
        if found:  # nothing at all is what a lost volume looks like
            for name in set(self._models) - {folder.name for folder in folders}:
                self._retire(name, list(self._models[name]))
            for load in self._loads.standing():
                load.wanted &= load.path.parent in found
        self._refusals.sweep()
        self._metrics.last_scan.set_to_current_time()
        self._changed.notify_all()

    def _look_at(self, folder: Path, regular: bool) -> None:
        """Serve the newest versions of one model that can be served, up to its pin."""
        name = folder.name
        try:
            versions = self._up_to_the_pin(folder)
        except BundleError as error:
            self._refusals.add(name, 0, error)
            return
        wanted: list[int] = []
        seen: list[int] = []
        for version in reversed(versions):
            if len(wanted) == self._settings.keep_versions:
                break
            seen.append(version)
            self._begin(folder / str(version), version, regular)
            if version in self._models.get(name, {}):
                wanted.append(version)
        self._loads.keep(name, seen)
        if wanted:  # a model that is still there is never left with nothing
            self._retire(name, [v for v in self._models[name] if v not in wanted])

    def _up_to_the_pin(self, folder: Path) -> list[int]:
        versions = bundle.versions(folder)
        pin = storage.pin(folder, self._pins)
        if pin is None:
            return versions
        if pin.version not in versions:
            missing = BundleError("pin", f"{pin.source} names this version, which is not there.")
            self._refusals.add(folder.name, pin.version, missing)
        return [version for version in versions if version <= pin.version]

    def _begin(self, path: Path, version: int, regular: bool) -> None:
        """Load the version in `path`, if it is not served yet and not refused as it lies there."""
        name = path.parent.name
        # Taken before anything is read: what changes meanwhile is seen the next time.
        content = storage.fingerprint(path)
        if self._refusals.stands(name, version, content, also_changed=not regular):
            return
        if version in self._models.get(name, {}) and self._contents[name, version] == content:
            return
        load = self._loads.find(name, version)
        if load is not None:
            load.wanted &= load.content == content or not regular
            return
        key = attempts.key(path, content)
        if not self._started and self._opener.ended_in(key):
            log.warning("%s version %d ended the server while it was loaded.", name, version)
            self._last.add(name)
        elif self._loads.busy():
            self._waiting = True
        else:
            self._loads.begin(Load(name, version, path, content, key))

    def _on_slow(self, load: Load) -> None:
        """Let others be loaded beside this one."""
        with self._changed:
            self._look(regular=False)

    def _load(self, load: Load) -> None:
        """Load a version, and serve or refuse it; a thread's whole work."""
        model: Model | None = None
        error: Exception | None = None
        try:
            model = self._opener.open(
                load,
                lambda: self._models.get(load.model, {}),
                lambda: self._loads.let_others_pass(load),
            )
        except Cancelled:
            pass
        except Exception as why:  # whatever a bundle makes of us, it refuses that bundle only
            error = why
        with self._changed:
            if model is not None:
                self._serve(model, load.content)
            if isinstance(error, ConfigError):  # of the server, not of the bundle
                self._failure = error
            if error is not None and not self._closing:
                self._refusals.add(load.model, load.version, error, load.content)
            self._loads.end(load)
            try:
                self._look(regular=False)  # the next may be loaded, and the one before retired
            finally:
                self._changed.notify_all()

    def _serve(self, model: Model, content: Fingerprint) -> None:
        """Let a version be looked up: a new one, or one that is and has other files than it had."""
        name, version = model.manifest.model, model.manifest.version
        served = self._models.get(name, {}).get(version)
        if self._closing and model is not served:
            model.close()
            return
        self._contents[name, version] = content
        if model is not served:
            self._set(name, {**self._models.get(name, {}), version: model})
            self._tell(model)
            if served is not None:
                self._release(served)

    def _tell(self, model: Model) -> None:
        """Say in the log and the metrics what is served now and what it costs."""
        name, version, metrics = model.manifest.model, model.manifest.version, self._metrics
        metrics.reloads.labels("loaded", "").inc()
        metrics.models.labels(name, version, model.digest, self._engine.provider).set(1)
        metrics.loaded_at.labels(name, version).set_to_current_time()
        metrics.golden_max_abs_error.labels(name, version).set(model.prepared.golden_max_abs_error)
        log.info("Serving %s version %d (%s).", name, version, model.digest[:19])
        for batcher, tuned in model.batchers():
            log.info(
                "  %s, %s version %d: batches of up to %d rows, %d thread(s); "
                "rows and ms of a batch: %s.",
                *(batcher.name, name, version, tuned.batch_rows, tuned.threads),
                ", ".join(f"{cost.rows} {cost.seconds * 1e3:.3g}" for cost in tuned.costs),
            )
            metrics.queue_rows_limit.labels(batcher.name, name, version).set(
                self._settings.queue_rows
            )
            metrics.max_batch_rows.labels(batcher.name, name, version).set(tuned.batch_rows)
            for cost in tuned.costs:
                metrics.batch_profile.labels(batcher.name, name, version, cost.rows).set(
                    cost.seconds
                )

    def _retire(self, name: str, versions: list[int]) -> None:
        """Look these up no more; close each when the calls that hold it have ended."""
        left = dict(self._models[name])
        retired = [left.pop(version) for version in versions]
        self._set(name, left)
        for model in retired:
            del self._contents[name, model.manifest.version]
            self._metrics.remove_model(name, model.manifest.version)
            self._release(model)

    def _release(self, model: Model) -> None:
        """Close a model that is found no more, in a thread that waits for its last calls."""

        def release() -> None:
            model.in_flight.drain()
            model.close()
            self._metrics.retiring.dec()
            self._metrics.reloads.labels("retired", "").inc()
            log.info("Retired %s version %d.", model.manifest.model, model.manifest.version)

        self._metrics.retiring.inc()  # now, and not when its thread gets a turn
        self._draining = [thread for thread in self._draining if thread.is_alive()]
        self._draining.append(threading.Thread(target=release, name="release", daemon=True))
        self._draining[-1].start()

    def _set(self, name: str, versions: dict[int, Model]) -> None:
        """From here on these answer, and no others."""
        models = {**self._models, name: versions}
        self._models = {name: models[name] for name in sorted(models) if models[name]}
        self._listed = [of[v] for of in self._models.values() for v in sorted(of)]
