"""`latentd plan`: computes how many servers a rate of calls needs, from what a bundle costs here.

A call costs its worker some CPU time, and each of its rows costs its share of a batch. Under load
batches are full, so the cost of a row is that of a full batch, divided by its rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from latentd import bundle, settings
from latentd.errors import EXIT_CONFIG, BundleError, ConfigError
from latentd.models import scoring, storage
from latentd.models.loading import LoadedModel, load_model
from latentd.models.profile import MeasuredProfile
from latentd.rpc.methods import METHODS
from latentd.runtime.engine import SessionFactory
from latentd.runtime.provider import default_worker_count
from latentd.settings import Settings

CALLS: Final = {
    "encode": "Encode",
    "decode": "Decode",
    "sample": "Sample",
    "interpolate": "Interpolate",
    "reconstruct": "Reconstruct",
    "score": "Score",
}
"""The RPC method of each --call."""

CALL_SECONDS: Final = 0.00012
"""CPU time of a call without its graphs' runs: `make bench`, Sample of one row, on a Zen 4."""
MAX_WAIT_SECONDS: Final = 0.1
"""The autoscaler's target: in a server wait no more rows than it runs in this time."""
_SPARE_REPLICAS: Final = 1  # one may be lost or restarting


@dataclass(frozen=True, slots=True)
class Workload:
    """The calls that a deployment must serve."""

    call: str  # a key of CALLS
    rate: float  # calls per second, of all clients
    rows: int  # in each call
    utilization: float  # share of the servers' time that the calls may use, above 0 and up to 1
    draws: int = 1  # of each row, for calls that draw: Score

    def check(self) -> None:
        """Raises ConfigError, which names the flag."""
        if not (min(self.rate, self.rows, self.draws) > 0 and 0 < self.utilization <= 1):
            raise ConfigError(
                "--rate, --rows and --draws must be above 0, --target-utilization above 0 and at "
                "most 1."
            )


@dataclass(frozen=True, slots=True)
class Capacity:
    """The deployment that a workload needs."""

    seconds: float  # CPU time of one worker for one call
    replicas: int  # including the spare one
    rate: float  # calls per second of all replicas at full utilization
    memory_bytes: int  # of one idle replica
    memory_limit_bytes: int  # of one replica with full queues that also tries a version
    queue_rows: int  # in one replica: with more rows waiting the autoscaler must add one


def profiles(workload: Workload, model: LoadedModel) -> dict[str, MeasuredProfile]:
    """The profiles of the graphs that a call runs, by the graph's name."""
    both = {"encoder": model.encoder.profile, "decoder": model.decoder.profile}
    return {name: both[name] for name in METHODS[CALLS[workload.call]].graphs}


def compute(
    workload: Workload,
    model: LoadedModel,
    settings: Settings,
    resident_bytes: int,
    likelihood_seconds: float = 0.0,
) -> Capacity:
    """Size a deployment whose replicas have `settings.workers` workers.

    resident_bytes:  of one worker, with as many versions as it keeps
    likelihood_seconds: CPU time of log p(x | z) of one draw of one row, for Score
    """
    draws = workload.draws if METHODS[CALLS[workload.call]].per_draw else 1
    *others, last = (
        profile.batch_seconds / profile.batch_rows for profile in profiles(workload, model).values()
    )
    row_seconds = sum(others) + draws * (last + likelihood_seconds)
    seconds = CALL_SECONDS + workload.rows * row_seconds
    replica_rate = settings.workers / seconds
    replicas = math.ceil(workload.rate / (replica_rate * workload.utilization)) + _SPARE_REPLICAS
    idle_bytes = settings.workers * resident_bytes
    queues = 2 * settings.queue_mib  # the encoder's and the decoder's
    full_mib = queues + settings.max_unsent_response_mib + settings.max_partial_request_mib
    return Capacity(
        seconds=seconds,
        replicas=replicas,
        rate=replicas * replica_rate,
        memory_bytes=idle_bytes,
        memory_limit_bytes=idle_bytes + resident_bytes + (settings.workers * full_mib << 20),
        queue_rows=max(1, round(replica_rate * workload.rows * draws * MAX_WAIT_SECONDS)),
    )


def plan(args: argparse.Namespace) -> int:
    """Measure, compute and print; returns the exit status."""
    workload = Workload(args.call, args.rate, args.rows, args.target_utilization, args.draws)
    try:
        workload.check()
        chosen = settings.load_settings(vars(args))
        workers = chosen.workers or default_worker_count(chosen.provider)
        chosen = dataclasses.replace(chosen, workers=workers)
        model, resident_bytes = _measure(chosen)
        per_draw = METHODS[CALLS[workload.call]].per_draw
        if reason := model.manifest.unavailable.get(workload.call):
            raise ConfigError(
                f"--call {workload.call}: {model.manifest.model} {reason}. Choose another call or "
                "model."
            )
        likelihood_seconds = 0.0
        if per_draw:
            measured = scoring.measure(model.likelihood, model.manifest.default)
            likelihood_seconds = measured.likelihood
    except (ConfigError, BundleError) as error:
        print(f"latentd: {error}", file=sys.stderr)
        return EXIT_CONFIG
    print(
        _format(
            workload,
            model,
            compute(workload, model, chosen, resident_bytes, likelihood_seconds),
            workers,
        )
    )
    return 0


def _measure(settings: Settings) -> tuple[LoadedModel, int]:
    """Load the default model as a worker would, with as many versions as it keeps; returns the
    newest and this process's peak memory in bytes. Raises ConfigError, BundleError."""
    from latentd.process import server  # noqa: F401  (a worker has it in memory)

    storage.check_root(Path(settings.bundles))
    folder = _model_folder(Path(settings.bundles), settings.default_model)
    paths = [folder / str(v) for v in bundle.versions(folder)[-settings.keep_versions :]]
    if not paths:
        raise ConfigError(f"There is no version of a model in {folder}.")
    # If there are fewer versions so far, the oldest stands in for those to come.
    paths = paths[:1] * (settings.keep_versions - len(paths)) + paths
    engine = SessionFactory.from_settings(settings)
    loaded = [load_model(bundle.load(path), engine, settings) for path in paths]
    status = Path("/proc/self/status").read_text()
    return loaded[-1], int(status.partition("VmHWM:")[2].split()[0]) << 10


def _model_folder(root: Path, model: str) -> Path:
    if model:
        return root / model
    found = [path for path in sorted(root.glob("*")) if bundle.versions(path)]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ConfigError(f"--default-model must name one of the models in {root}: {names}.")
    return found[0]


def _format(workload: Workload, model: LoadedModel, capacity: Capacity, workers: int) -> str:
    graphs = [
        f"  {name}: {profile.batch_rows} rows in {profile.batch_seconds * 1e3:.3g} ms "
        f"with {profile.threads} thread(s)"
        for name, profile in profiles(workload, model).items()
    ]
    draws = f" of {workload.draws} draws" if METHODS[CALLS[workload.call]].per_draw else ""
    return "\n".join(
        [
            f"{workload.rate:g} {workload.call} calls a second, {workload.rows} row(s){draws} "
            f"each, of {model.manifest.model} version {model.manifest.version}; servers "
            f"{workload.utilization:.0%} busy.",
            *graphs,
            f"  a call: {capacity.seconds * 1e3:.3g} ms of a worker",
            f"replicas         {capacity.replicas} (one is spare; all carry "
            f"{capacity.rate:,.0f} calls/s)",
            f"workers          {workers} in each, a CPU for each",
            f"memory, request  {_mebibytes(capacity.memory_bytes)}",
            f"memory, limit    {_mebibytes(capacity.memory_limit_bytes)} (with every queue full)",
            f"averageValue     {capacity.queue_rows} (rows waiting, for the autoscaler)",
        ]
    )


def _mebibytes(count: int) -> str:
    """In Kubernetes' notation, rounded up to 64 MiB."""
    return f"{math.ceil(count / (64 << 20)) * 64}Mi"
