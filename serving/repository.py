"""Which models are served: found under a root, verified, opened, and looked up by name.

A bundle that fails to load is refused with its reason and does not stop the others.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from serving import bundle
from serving.engine import Engine
from serving.errors import BundleError, ConfigError, ModelNotFound
from serving.inference import Model, prepare
from serving.metrics import Metrics
from serving.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refused:
    """A version that was found and is not served."""

    model: str
    version: int
    reason: str


class Repository:
    """The models of one server."""

    def __init__(self, settings: Settings, engine: Engine, metrics: Metrics) -> None:
        self._settings, self._engine, self._metrics = settings, engine, metrics
        self._models: dict[str, dict[int, Model]] = {}
        self.refused: list[Refused] = []

    async def load(self) -> None:
        """Open the newest versions of every model. Raises ConfigError when none can be served."""
        root = Path(self._settings.bundles)
        for folder in await asyncio.to_thread(_model_folders, root):
            for version in reversed(bundle.versions(folder)):
                if len(self._models.get(folder.name, {})) == self._settings.keep_versions:
                    break
                await self._open(folder, version)
        if not self._models:
            refused = "".join(
                f"\n  {r.model} version {r.version}: {r.reason}" for r in self.refused
            )
            raise ConfigError(f"No bundle under {root} can be served.{refused}")
        default = self._settings.default_model
        if default and default not in self._models:
            raise ConfigError(
                f"The default model {default!r} is not among those served: {self._names()}."
            )

    async def _open(self, folder: Path, version: int) -> None:
        name, path = folder.name, folder / str(version)
        try:
            # Hashing, loading and measuring block: the event loop must go on answering health.
            checked = await asyncio.to_thread(bundle.load, path)
            prepared = await asyncio.to_thread(prepare, checked, self._engine, self._settings)
        except BundleError as error:
            self.refused.append(Refused(name, version, str(error)))
            self._metrics.reloads.labels("refused", error.reason).inc()
            log.error("Refused %s version %d: %s", name, version, error)
            return
        model = Model(prepared, self._settings, self._metrics)
        self._models.setdefault(name, {})[version] = model
        self._metrics.reloads.labels("loaded", "").inc()
        self._metrics.models.labels(name, version, model.digest, self._engine.provider).set(1)
        log.info(
            "Serving %s version %d (%s), batches of up to %d rows to the encoder and %d to the "
            "decoder.",
            name,
            version,
            model.digest[:19],
            model.encoder.batch_rows,
            model.decoder.batch_rows,
        )

    def find(self, name: str, version: int) -> Model:
        """The model that answers; "" and 0 are the defaults. Raises ModelNotFound."""
        if not name:
            name = self.default
            if not name:
                raise ModelNotFound(
                    f"This server has several models and no default: name one of {self._names()}."
                )
        versions = self._models.get(name)
        if versions is None:
            raise ModelNotFound(f"No model {name!r} is served here; there is {self._names()}.")
        model = versions.get(version or max(versions))
        if model is None:
            served = ", ".join(map(str, sorted(versions)))
            raise ModelNotFound(f"{name} has no version {version} here; served: {served}.")
        return model

    @property
    def default(self) -> str:
        """The model for requests that name none; empty when there are several and none was set."""
        only = next(iter(self._models)) if len(self._models) == 1 else ""
        return self._settings.default_model or only

    def versions(self, name: str) -> list[int]:
        """The versions of one model that are served, ascending."""
        return sorted(self._models.get(name, {}))

    def models(self) -> list[Model]:
        """Every model served, by name and version."""
        return [self._models[name][v] for name in sorted(self._models) for v in self.versions(name)]

    async def close(self) -> None:
        """Finish what waits everywhere."""
        await asyncio.gather(*(asyncio.to_thread(model.close) for model in self.models()))

    def _names(self) -> str:
        return ", ".join(sorted(self._models))


def _model_folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise ConfigError(
            f"The bundles' folder {root} does not exist. Export a model into it "
            "(python -m training export --bundles ...), or name another with --bundles."
        )
    return sorted(entry for entry in root.iterdir() if entry.is_dir())
