"""How many servers, and how large, a rate of calls needs: from what a bundle's graphs cost here.

A call costs its worker some CPU for itself, and its rows cost what they cost in the batches that
the server would make. Under load batches are full, so a full batch tells what a row costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from latentd import bundle
from latentd.errors import ConfigError
from latentd.models import storage
from latentd.models.loading import GraphProfile, LoadedModel, load_model
from latentd.rpc.methods import METHODS
from latentd.runtime.engine import SessionFactory
from latentd.settings import Settings

CALLS: Final = {
    "encode": "Encode",
    "decode": "Decode",
    "sample": "Sample",
    "interpolate": "Interpolate",
    "reconstruct": "Reconstruct",
    "score": "Score",
}
"""The method of each call that `plan` knows."""

CALL_SECONDS: Final = 0.00012
"""CPU of a call beside its graphs' runs: `make bench`, Sample of one row, on a Zen 4."""
WAIT_SECONDS: Final = 0.1
"""What autoscaling aims at: no more rows wait in a server than it runs in this time."""
_SPARE: Final = 1  # of the servers may be gone: being replaced, or lost


@dataclass(frozen=True, slots=True)
class Workload:
    """What callers want."""

    call: str  # a key of CALLS
    rate: float  # calls a second, of all together
    rows: int  # in each call
    busy: float  # share of the servers' time that this may take, above 0 and up to 1
    draws: int = 1  # of each row, in calls that draw: Score


@dataclass(frozen=True, slots=True)
class Capacity:
    """What that takes."""

    seconds: float  # of one worker, for one call
    replicas: int  # with the spare one
    rate: float  # calls a second of all of them with nothing to spare
    memory_bytes: int  # of one replica that is idle
    memory_limit_bytes: int  # of one full of rows, answers and requests, that tries a version
    queue_rows: int  # waiting in one replica: when there are more, autoscaling should add one


def batchers(demand: Workload, prepared: LoadedModel) -> dict[str, GraphProfile]:
    """The graphs that the calls pass, by lane."""
    both = {"encoder": prepared.encoder.profile, "decoder": prepared.decoder.profile}
    return {name: both[name] for name in METHODS[CALLS[demand.call]].graphs}


def need(
    demand: Workload,
    prepared: LoadedModel,
    settings: Settings,
    resident_bytes: int,
    density_seconds: float = 0.0,
) -> Capacity:
    """Size a deployment whose replicas have `settings.workers` workers.

    resident_bytes:  of one worker, with as many versions as it keeps
    density_seconds: what one draw of one row costs beside its run, for Score
    """
    draws = demand.draws if METHODS[CALLS[demand.call]].per_draw else 1
    *before, last = (
        batcher.batch_seconds / batcher.batch_rows
        for batcher in batchers(demand, prepared).values()
    )
    row_seconds = sum(before) + draws * (last + density_seconds)
    seconds = CALL_SECONDS + demand.rows * row_seconds
    carried = settings.workers / seconds  # calls a second, by one replica
    replicas = math.ceil(demand.rate / (carried * demand.busy)) + _SPARE
    idle = settings.workers * resident_bytes
    queues = 2 * settings.queue_mib  # the encoder's and the decoder's
    held = queues + settings.max_unsent_response_mib + settings.max_partial_request_mib
    return Capacity(
        seconds=seconds,
        replicas=replicas,
        rate=replicas * carried,
        memory_bytes=idle,
        memory_limit_bytes=idle + resident_bytes + (settings.workers * held << 20),
        queue_rows=max(1, round(carried * demand.rows * draws * WAIT_SECONDS)),
    )


def measure(settings: Settings) -> tuple[LoadedModel, int]:
    """Load the default model as a worker would, with as many versions as it keeps; gives the newest
    and the most bytes this process has held. Raises ConfigError, BundleError."""
    from latentd.process import server  # noqa: F401  (a worker has it in memory)

    storage.check_root(Path(settings.bundles))
    folder = _folder(Path(settings.bundles), settings.default_model)
    paths = [folder / str(v) for v in bundle.versions(folder)[-settings.keep_versions :]]
    if not paths:
        raise ConfigError(f"There is no version of a model in {folder}.")
    # Where there are fewer as yet, the oldest stands in for those to come.
    paths = paths[:1] * (settings.keep_versions - len(paths)) + paths
    engine = SessionFactory.from_settings(settings)
    kept = [load_model(bundle.load(path), engine, settings) for path in paths]
    status = Path("/proc/self/status").read_text()
    return kept[-1], int(status.partition("VmHWM:")[2].split()[0]) << 10


def _folder(root: Path, model: str) -> Path:
    if model:
        return root / model
    found = [path for path in sorted(root.glob("*")) if bundle.versions(path)]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ConfigError(f"--default-model must name one of the models in {root}: {names}.")
    return found[0]
