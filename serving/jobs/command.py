"""What `latentd batch` does, and what it says on the way."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentd import images
from latentd.bundle import DataSpec
from latentd.client.channel import CredentialFiles
from latentd.errors import ConfigError
from latentd.jobs import exit_codes, inputs, job, outputs, quarantine, remote, worker
from latentd.jobs.inputs import Rows
from latentd.jobs.job import ShardRange
from latentd.jobs.plan import BundleId, OutputSpec, Plan, default_shard_rows
from latentd.jobs.progress import Progress
from latentd.jobs.quarantine import Limit
from latentd.jobs.reconstruct import check_wanted, load_bundle
from latentd.jobs.remote import Server
from latentd.jobs.store import QUARANTINE, SUCCESS, ShardManifest, Store
from latentd.jobs.worker import Failed, WorkerConfig, explain
from latentd.readers import files
from latentd.readers.rows import BadRow
from latentd.runtime.provider import default_worker_count

_TRIED_ROWS = 2048  # run by --dry-run to estimate the time


def run(args: argparse.Namespace) -> int:
    """Run a job; returns the exit status."""
    before = signal.getsignal(signal.SIGTERM)
    worker.terminate_as_exit()
    _give_way(args.niceness)
    try:
        status = _dry_run(args) if args.dry_run else _run(args)
        _flush()
        return status
    except Failed as error:
        _say(error.failure.what)
        return error.failure.status
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        _say(explain(error))
        return exit_codes.status(error)
    finally:
        signal.signal(signal.SIGTERM, before)


def _give_way(niceness: int) -> None:
    """Let whoever answers somebody have the CPUs first: a job has hours. Threads and processes
    begun from now on inherit it; nobody who has given way already is made to do so less."""
    if niceness > os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, niceness)


def _run(args: argparse.Namespace) -> int:
    folder, share, limit = _folder(args), _share(args), Limit(args.max_quarantined)
    target = _target(args)
    folder.mkdir(parents=True, exist_ok=True)
    # One plans, the others wait and find the plan there.
    with contextlib.closing(Store(folder)) as store, store.locked(None, wait=True):
        plan, beside = _plan(args, target, folder)
        job.settle(plan, beside, store)
    setting = WorkerConfig(folder, plan, target.bundle, args.provider, _server(args))
    ours = sum(len(plan.shard(i)) for i in range(plan.shards)[share.index :: share.count])
    began = time.monotonic()
    metrics = Path(args.metrics_file) if args.metrics_file else None
    with Progress(ours, metrics) as progress:
        job.run(setting, share, _processes(args), progress, args.executor)
    seconds = time.monotonic() - began
    try:
        outcome = job.finish(setting, share, limit)
    finally:  # a summary that cannot be printed does not keep the job from being finished
        print(_rate(progress, seconds))
    if outcome.missing:
        print(
            f"This share of {folder} is done; other machines are still at theirs: "
            f"{outcome.missing} of {plan.shards} shards are missing."
        )
        return 0
    _summarise(plan, outcome.manifests, folder)
    return 0


def _rate(progress: Progress, seconds: float) -> str:
    """What this run did, and how fast; rows that were there before count for nothing."""
    ran, kept = progress.rows - progress.kept, progress.kept
    if not ran:
        return f"All {kept:,} rows were finished already; their shards are whole."
    before = f" {kept:,} others were finished already." if kept else ""
    return f"{ran:,} rows in {seconds:,.1f} s, {ran / max(seconds, 1e-9):,.0f} a second.{before}"


def _summarise(plan: Plan, manifests: list[ShardManifest], folder: Path) -> None:
    bad = [row for m in manifests for row in m.quarantined]
    outside = sum(m.outside for m in manifests)
    print(
        f"{plan.rows - len(bad):,} of {plan.rows:,} rows in {plan.shards} shards under "
        f"{folder}/shards."
    )
    if outside:
        print(
            f"{outside:,} rows hold values outside the range of the training data, which makes "
            f"their scores extreme: the column {outputs.OUTSIDE} counts them."
        )
    if bad:
        print(f"{quarantine.share(len(bad), plan.rows)} are quarantined. The reasons:")
        print(f"{quarantine.reasons(bad)}\nEvery one is in {folder / QUARANTINE}.")
    if (folder / "sheet.html").exists():
        print(f"Look at {folder}/sheet.html.")


def _dry_run(args: argparse.Namespace) -> int:
    folder, share, limit = _folder(args), _share(args), Limit(args.max_quarantined)
    target = _target(args)
    plan, beside = _plan(args, target, folder)
    for entry in plan.inputs:
        path = files.printable(entry.path) or "images"
        print(f"{entry.rows:>12,} rows, {entry.bytes:>14,} bytes  {path}")
    print(f"{plan.rows:>12,} rows in all, {plan.shards} shards of up to {plan.shard_rows:,}")
    b = plan.bundle
    print(f"Through {b.model} version {b.version} ({b.digest[:15]}), {plan.batch_rows} at once.")
    size = plan.rows * outputs.bytes_per_row(plan, target.latent_size)
    nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(nearest).free
    print(f"About {size / 1e9:,.3f} GB into {folder}, where {free / 1e9:,.1f} GB are free.")
    rows, seconds, bad = _try(args, target, plan, beside)
    processes = min(_processes(args) or 1, plan.shards)
    whole = seconds / rows * plan.rows / (processes * share.count)
    print(
        f"{rows / seconds:,.0f} rows a second in one process, tried on {rows:,}; about "
        f"{whole:,.0f} s with {processes} on each of {share.count} machine(s)."
    )
    print(f"{quarantine.share(len(bad), rows)} that were tried would be quarantined.")
    if bad:
        print(quarantine.reasons(bad))
    if len(bad) * plan.rows > limit.rows(plan.rows) * rows:
        print(
            "With as many in all of it, the job would end with status "
            f"{exit_codes.QUARANTINED} and without {SUCCESS}: --max-quarantined {limit.text} "
            "allows fewer."
        )
    if size > free:
        print("It will not fit.")
    return 0


def _try(
    args: argparse.Namespace, target: _Target, plan: Plan, beside: dict[str, bytes]
) -> tuple[int, float, list[BadRow]]:
    """Run the first rows and throw them away: how many, in how many seconds, and the bad ones."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in beside.items():
            (Path(folder) / name).write_bytes(content)
        setting = WorkerConfig(Path(folder), plan, target.bundle, args.provider, _server(args))
        reconstruct = worker.reconstruction(setting)
        rows = Rows(plan, Path(folder))
        count = min(plan.rows, _TRIED_ROWS)
        with contextlib.closing(rows):
            list(reconstruct(rows.read(0, min(count, plan.batch_rows), plan.batch_rows)))  # warm
            began = time.monotonic()
            results = list(reconstruct(rows.read(0, count, plan.batch_rows)))
            seconds = time.monotonic() - began
            return count, seconds, [bad for result in results for bad in result.bad]


@dataclass(frozen=True)
class _Target:
    """The model that the job goes through, and what is known of it beforehand."""

    bundle: Path | None
    who: BundleId
    x: DataSpec
    likelihood: str
    latent_size: int
    family: str
    training_scores: dict[str, Any]


def _target(args: argparse.Namespace) -> _Target:
    server = _server(args)
    if server is not None:
        info = remote.look(server, args.model)
        if args.batch_rows > info.limits.max_rows:
            raise ConfigError(
                f"--batch-rows {args.batch_rows}: {args.server} takes {info.limits.max_rows} rows "
                "in one message."
            )
        by = info.served_by
        who = BundleId(by.model, by.version, by.digest)
        scores = info.training_scores
        rest = info.latent_size, info.family, scores
        return _Target(None, who, info.x, info.likelihood, *rest)
    loaded = load_bundle(Path(args.bundle))
    m = loaded.manifest
    who = BundleId(m.model, m.version, loaded.digest)
    # The version's own folder: "the newest" may be another when a worker looks.
    rest = m.latent_size, m.family, m.training_scores
    return _Target(loaded.path, who, m.x, m.likelihood, *rest)


def _server(args: argparse.Namespace) -> Server | None:
    if not args.server:
        return None
    return Server(
        args.server, CredentialFiles(args.tls_ca, args.tls_cert, args.tls_key, args.token_file)
    )


def _plan(args: argparse.Namespace, target: _Target, folder: Path) -> tuple[Plan, dict[str, bytes]]:
    """The plan that is asked for, and the files that belong beside it."""
    wanted = OutputSpec(
        format=args.format,
        scores=not args.no_scores,
        latents=not args.no_latents,
        reconstruction=args.reconstruction,
        draw=args.draw,
        seed=args.seed,
    )
    check_wanted(wanted, target.family, images.is_png_compatible(target.x))
    columns, known = (args.column, args.id_column), job.known_plan(folder)
    found = inputs.look(args.input, target.x, *columns, known, folder)
    print(f"--input: {found.counts}.", flush=True)
    plan = Plan(
        bundle=target.who,
        x=target.x,
        likelihood=target.likelihood,
        inputs=found.inputs,
        wanted=wanted,
        shard_rows=args.shard_rows or default_shard_rows(target.x, target.latent_size, wanted),
        batch_rows=max(1, args.batch_rows),
        resize=args.resize,
        training_scores=target.training_scores if wanted.scores else {},
        files=dataclasses.asdict(found.counts),
    )
    outputs.check(plan)
    return plan, found.files()


def _folder(args: argparse.Namespace) -> Path:
    if files.is_remote(args.output):
        raise ConfigError(
            f"--output {args.output}: results are committed by fsync, rename and locks, which "
            "object stores do not have. Give a folder, of a mounted volume perhaps, and copy it "
            "once it holds _SUCCESS."
        )
    return Path(args.output)


def _share(args: argparse.Namespace) -> ShardRange:
    if not 0 <= args.shard_index < args.shard_count:
        raise ConfigError(
            f"--shard-index {args.shard_index} (or JOB_COMPLETION_INDEX) is not below "
            f"--shard-count {args.shard_count}: indexes go from 0 to one less than the count."
        )
    return ShardRange(args.shard_index, args.shard_count)


def _processes(args: argparse.Namespace) -> int:
    if args.executor == "ray":
        return int(args.processes)  # 0: what the cluster has
    if args.processes or args.server:
        return int(args.processes) or 1
    return default_worker_count(args.provider)


def _flush() -> None:
    """Have what was printed written now, where an error can still be said. Raises OSError."""
    try:
        sys.stdout.flush()
    except OSError:
        # Python would try once more at its end, and print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _say(what: str) -> None:
    print(f"latentd: {what}", file=sys.stderr)
