"""Which models are served: found under a root, verified, opened, looked up by name, and let go of.

`look` brings what is served in line with what lies under the root. A version is opened wholly
before it is looked up by anybody; one that is no longer wanted is looked up no more, finishes the
calls that hold it and is closed. A bundle that cannot be served is refused with its reason and
changes nothing: whatever served before it serves on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Final

from serving import bundle
from serving.batching.tasks import Caller
from serving.errors import BundleError, ConfigError, ModelNotFound
from serving.metrics import Metrics
from serving.models import shelf
from serving.models.inference import Model
from serving.models.loading import Prepared, prepare
from serving.models.refusals import Refusals, Refused
from serving.models.shelf import Fingerprint
from serving.runtime.engine import Engine
from serving.settings import Settings

log = logging.getLogger(__name__)

_LAST_CALLS_SECONDS: Final = 5.0
"""How long `close` waits for calls on retired versions. The listener has ended them all before."""


class Repository:
    """The models of one server. Looked up in any thread; changed by `look` alone."""

    def __init__(self, settings: Settings, engine: Engine, metrics: Metrics) -> None:
        """Raises ConfigError for pins that cannot be read."""
        self._settings, self._engine, self._metrics = settings, engine, metrics
        self._root = Path(settings.bundles)
        self._pins = shelf.read_pins(settings.pin)
        # Both are replaced and never changed, so that those who look up need no lock.
        self._models: dict[str, dict[int, Model]] = {}
        self._listed: list[Model] = []
        self._refusals = Refusals(metrics)
        self._contents: dict[tuple[str, int], Fingerprint] = {}  # of what is served
        self._looking = threading.Lock()
        self._closing = False
        self._draining: list[threading.Thread] = []
        self.loads = 0  # begun and ended, each counted: odd while a version is loaded
        self.default = settings.default_model

    async def load(self) -> None:
        """The first look. Raises ConfigError when nothing can be served."""
        shelf.check_root(self._root)
        # Hashing, loading and measuring block: the event loop must go on answering health.
        await asyncio.to_thread(self.look)
        if not self._models:
            refused = "".join(
                f"\n  {r.model} version {r.version}: {r.reason}" for r in self.refused()
            )
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
        """Serve what lies under the root now; blocks, for a thread that serves nobody."""
        with self._looking:
            if self._closing:
                return
            try:
                folders = shelf.models(self._root)
                found = [folder for folder in folders if bundle.versions(folder)]
            except OSError as error:
                self._refusals.add("", 0, error)
                return
            for folder in found:
                self._look_at(folder)
            if found:  # nothing at all is what a lost volume looks like
                for name in set(self._models) - {folder.name for folder in folders}:
                    self._retire(name, list(self._models[name]))
            self._refusals.sweep()
            self._metrics.looked_at.set_to_current_time()

    def find(self, name: str, version: int, caller: Caller) -> Model:
        """The model that answers, held until the caller's call has ended; "" and 0 are the
        defaults. Raises ModelNotFound."""
        while True:
            model = self._find(name, version)
            if model.holds.take(caller):
                return model  # else it was replaced just now, and is found no more

    def versions(self, name: str) -> list[int]:
        """The versions of one model that are served, ascending."""
        return sorted(self._models.get(name, {}))

    def models(self) -> list[Model]:
        """Every model served, by name and version."""
        return self._listed

    def refused(self) -> list[Refused]:
        """What was found and is not served, by name and version."""
        return self._refusals.standing()

    async def close(self) -> None:
        """Finish what waits everywhere."""
        self._closing = True
        await asyncio.to_thread(self._looking.acquire)  # once the look under way has ended
        self._looking.release()
        for thread in self._draining:
            await asyncio.to_thread(thread.join, _LAST_CALLS_SECONDS)
        await asyncio.gather(*(asyncio.to_thread(model.close) for model in self.models()))

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

    def _look_at(self, folder: Path) -> None:
        """Serve the newest versions of one model that can be served, up to its pin."""
        name = folder.name
        try:
            versions = self._up_to_the_pin(folder)
        except (BundleError, OSError) as error:
            self._refusals.add(name, 0, error)
            return
        wanted: list[int] = []
        for version in reversed(versions):
            if len(wanted) == self._settings.keep_versions or self._closing:
                break
            self._open(folder / str(version), version)
            if version in self._models.get(name, {}):
                wanted.append(version)
        if wanted and not self._closing:  # a model that is still there is never left with nothing
            self._retire(name, [v for v in self._models[name] if v not in wanted])

    def _up_to_the_pin(self, folder: Path) -> list[int]:
        versions = bundle.versions(folder)
        pin = shelf.pin(folder, self._pins)
        if pin is None:
            return versions
        if pin.version not in versions:
            missing = BundleError("pin", f"{pin.source} names this version, which is not there.")
            self._refusals.add(folder.name, pin.version, missing)
        return [version for version in versions if version <= pin.version]

    def _open(self, path: Path, version: int) -> None:
        """Serve the version in `path`, if it is not served yet and not refused as it lies there."""
        name = path.parent.name
        # Taken before anything is read: what changes meanwhile is seen the next time.
        content = shelf.fingerprint(path)
        if self._refusals.stands(name, version, content):
            return
        served = self._models.get(name, {}).get(version)
        if served is not None and self._contents[name, version] == content:
            return
        try:
            checked = bundle.load(path)
            if served is None or served.digest != checked.digest:
                self._serve(checked)
        except ConfigError:
            raise  # of the server, not of the bundle
        except Exception as error:  # whatever a bundle makes of us, it refuses that bundle only
            self._refusals.add(name, version, error, content)
        else:
            self._contents[name, version] = content

    def _serve(self, checked: bundle.Bundle) -> None:
        name, version = checked.manifest.model, checked.manifest.version
        others = self._models.get(name, {})
        before = others[max(others)].prepared if others else None
        replaced = others.get(version)
        self.loads += 1
        try:
            prepared = prepare(checked, self._engine, self._settings, before)
            # Deleted and published anew between two looks: digests in the answers tell them apart.
            if replaced is not None:
                log.warning("%s version %d has other content than it had.", name, version)
                self._metrics.forget(name, version)  # now: its successor's series have its labels
            model = self._begun(prepared)
        finally:
            self.loads += 1
        self._set(name, {**others, version: model})
        self._tell(model)
        if replaced is not None:
            self._release(replaced)

    def _begun(self, prepared: Prepared) -> Model:
        """A model whose lanes are ready. Raises what one of them fails with."""
        model = Model(prepared, self._settings, self._metrics)
        try:
            model.wait_until_begun()
        except Exception:
            model.close()
            self._metrics.forget(model.manifest.model, model.manifest.version)
            raise
        return model

    def _tell(self, model: Model) -> None:
        """Say in the log and the metrics what is served now and what it costs."""
        name, version, metrics = model.manifest.model, model.manifest.version, self._metrics
        metrics.reloads.labels("loaded", "").inc()
        metrics.models.labels(name, version, model.digest, self._engine.provider).set(1)
        metrics.loaded_at.labels(name, version).set_to_current_time()
        metrics.golden_difference.labels(name, version).set(model.prepared.golden_difference)
        log.info("Serving %s version %d (%s).", name, version, model.digest[:19])
        for lane, tuned in model.lanes():
            log.info(
                "  %s, %s version %d: batches of up to %d rows, %d thread(s); "
                "rows and ms of a batch: %s.",
                *(lane.name, name, version, tuned.batch_rows, tuned.threads),
                ", ".join(f"{cost.rows} {cost.seconds * 1e3:.3g}" for cost in tuned.costs),
            )
            metrics.queue_most.labels(lane.name, name, version).set(self._settings.queue_rows)
            metrics.batch_most.labels(lane.name, name, version).set(tuned.batch_rows)
            for cost in tuned.costs:
                metrics.batch_cost.labels(lane.name, name, version, cost.rows).set(cost.seconds)

    def _retire(self, name: str, versions: list[int]) -> None:
        """Look these up no more; close each when the calls that hold it have ended."""
        left = dict(self._models[name])
        retired = [left.pop(version) for version in versions]
        self._set(name, left)
        for model in retired:
            del self._contents[name, model.manifest.version]
            self._metrics.forget(name, model.manifest.version)
            self._release(model)

    def _release(self, model: Model) -> None:
        """Close a model that is found no more, in a thread that waits for its last calls."""

        def release() -> None:
            model.holds.drain()
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
