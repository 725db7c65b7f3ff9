"""What was found and is not served, and why: told once, and not looked into again until changed."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from serving.errors import LatentdError
from serving.metrics import Metrics
from serving.models.shelf import Fingerprint

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refused:
    """A version that is not served, or not as it lies there now."""

    model: str  # empty: the root as a whole
    version: int  # 0: the model as a whole
    reason: str
    content: Fingerprint  # what was there when it was refused


class Refusals:
    """The refusals that stand. One thread at a time writes; any may read `standing`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._standing: dict[tuple[str, int], Refused] = {}
        self._met: set[tuple[str, int]] = set()  # since the last sweep

    def standing(self) -> list[Refused]:
        """By model and version."""
        standing = self._standing
        return [standing[key] for key in sorted(standing)]

    def stands(
        self, model: str, version: int, content: Fingerprint, also_changed: bool = False
    ) -> bool:
        """Whether this very content was refused before, or with `also_changed` any."""
        refused = self._standing.get((model, version))
        if refused is None or not (also_changed or refused.content == content):
            return False
        self._met.add((model, version))
        return True

    def add(self, model: str, version: int, error: Exception, content: Fingerprint = ()) -> None:
        """Refuse; in the log and the metric only if it was not refused for this before."""
        key = (model, version)
        known = isinstance(error, LatentdError)
        reason = str(error) if known else f"It cannot be read ({error!r})."
        self._met.add(key)
        before = self._standing.get(key)
        self._standing = {**self._standing, key: Refused(model, version, reason, content)}
        if before is None or (before.reason, before.content) != (reason, content):
            self._metrics.reloads.labels("refused", getattr(error, "reason", "unreadable")).inc()
            what = f"{model} version {version}" if version else model or "the bundles' folder"
            log.error("Refused %s: %s", what, reason, exc_info=None if known else error)

    def sweep(self) -> None:
        """Forget what was not met again since the last sweep: it is mended or gone."""
        self._standing = {key: r for key, r in self._standing.items() if key in self._met}
        self._met = set()
