"""`latentd plan`: replicas and memory for a rate of calls, for a person to read."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys

from latentd import settings
from latentd.errors import EXIT_CONFIG, BundleError, ConfigError
from latentd.models import scoring
from latentd.models.loading import LoadedModel
from latentd.process import capacity
from latentd.process.capacity import CALLS, Capacity, Workload
from latentd.rpc.methods import METHODS
from latentd.runtime.provider import default_worker_count


def run(args: argparse.Namespace) -> int:
    """Measure, plan, print; returns the exit status."""
    demand = Workload(args.call, args.rate, args.rows, args.busy, args.draws)
    try:
        if not (min(demand.rate, demand.rows, demand.draws) > 0 and 0 < demand.busy <= 1):
            raise ConfigError(
                "--rate, --rows and --draws must be above 0, --busy above 0 and at most 1."
            )
        chosen = settings.load_settings(vars(args))
        workers = chosen.workers or default_worker_count(chosen.provider)
        chosen = dataclasses.replace(chosen, workers=workers)
        prepared, resident = capacity.measure(chosen)
        draws = METHODS[CALLS[demand.call]].per_draw
        if draws and prepared.manifest.family != "vae":
            raise ConfigError(
                f"{prepared.manifest.model} is a plain autoencoder, which defines no likelihood: "
                "no server answers --call score for it."
            )
        density = scoring.measure(prepared.manifest).density if draws else 0.0
    except (ConfigError, BundleError) as error:
        print(f"latentd: {error}", file=sys.stderr)
        return EXIT_CONFIG
    need = capacity.need(demand, prepared, chosen, resident, density)
    print(_told(demand, prepared, need, workers))
    return 0


def _told(demand: Workload, prepared: LoadedModel, need: Capacity, workers: int) -> str:
    model = prepared.manifest
    graphs = [
        f"  {name}: {tuned.batch_rows} rows in "
        f"{tuned.batch_seconds * 1e3:.3g} ms "
        f"with {tuned.threads} thread(s)"
        for name, tuned in capacity.batchers(demand, prepared).items()
    ]
    drawn = f" of {demand.draws} draws" if METHODS[CALLS[demand.call]].per_draw else ""
    return "\n".join(
        [
            f"{demand.rate:g} {demand.call} calls a second, {demand.rows} row(s){drawn} each, of "
            f"{model.model} version {model.version}; servers {demand.busy:.0%} busy.",
            *graphs,
            f"  a call: {need.seconds * 1e3:.3g} ms of a worker",
            f"replicas         {need.replicas} (one is spare; all carry {need.rate:,.0f} calls/s)",
            f"workers          {workers} in each, a CPU for each",
            f"memory, request  {_mebibytes(need.memory_bytes)}",
            f"memory, limit    {_mebibytes(need.memory_limit_bytes)} (with every queue full)",
            f"averageValue     {need.queue_rows} (rows waiting, for the autoscaler)",
        ]
    )


def _mebibytes(count: int) -> str:
    """As Kubernetes writes it, rounded up to 64 MiB."""
    return f"{math.ceil(count / (64 << 20)) * 64}Mi"
