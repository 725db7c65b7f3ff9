"""`latentd batch`: run a job, print a summary."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentd.bundle import RowShapes, Threshold
from latentd.client.channel import CredentialFiles
from latentd.errors import ConfigError
from latentd.jobs import exit_codes, inputs, job, outputs, quarantine, remote, worker
from latentd.jobs.inputs import FoundInputs, ReadOptions, RowReader
from latentd.jobs.job import ShardRange
from latentd.jobs.model_rows import ModelRows
from latentd.jobs.plan import BATCH_BYTES, BundleId, OutputSpec, Plan, with_shards
from latentd.jobs.progress import JobProgress
from latentd.jobs.quarantine import Limit
from latentd.jobs.reconstruct import check_output_spec, load_bundle
from latentd.jobs.remote import RemoteServer
from latentd.jobs.store import QUARANTINE, SUCCESS, ShardManifest, Store
from latentd.jobs.worker import WorkerConfig, WorkerFailed, explain
from latentd.readers import files
from latentd.readers.rows import BadRow
from latentd.runtime.provider import default_worker_count

_TRIAL_ROWS, _TRIAL_BYTES = 2048, 64 << 20  # --dry-run runs up to so many to estimate the time


def run(args: argparse.Namespace) -> int:
    """Run a job; returns the exit status."""
    before = signal.getsignal(signal.SIGTERM)
    worker.exit_on_sigterm()
    _lower_priority(args.niceness)
    try:
        status = _dry_run(args) if args.dry_run else _run(args)
        _flush()
        return status
    except WorkerFailed as error:
        _print_error(error.failure.message)
        return error.failure.status
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        _print_error(explain(error))
        with contextlib.suppress(OSError):  # it is reported; at exit Python would flush once more
            _flush()
        return exit_codes.status(error)
    finally:
        signal.signal(signal.SIGTERM, before)


def _lower_priority(niceness: int) -> None:
    """Let interactive processes have the CPUs first. Threads and processes started later inherit
    the niceness. A niceness that is already higher stays."""
    if niceness > os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, niceness)


def _run(args: argparse.Namespace) -> int:
    folder, shard_range, limit = _folder(args), _shard_range(args), Limit(args.max_quarantined)
    target = _target(args)
    folder.mkdir(parents=True, exist_ok=True)
    # One process plans; the others wait, then find the plan in the folder.
    with contextlib.closing(Store(folder)) as store, store.locked(None, wait=True):
        plan, found = _plan(args, target, folder)
        job.start_or_resume(plan, found.files(), store)
    config = WorkerConfig(folder, plan, target.bundle, args.provider, _server(args))
    own_shards = range(plan.shards)[shard_range.index :: shard_range.count]
    own_rows = sum(len(plan.shard(i)) for i in own_shards)
    start = time.monotonic()
    metrics = Path(args.metrics_file) if args.metrics_file else None
    with JobProgress(own_rows, metrics) as progress:
        job.run(config, shard_range, _processes(args), progress, args.executor)
    seconds = time.monotonic() - start
    try:
        outcome = job.finish(config, shard_range, limit)
    finally:  # after the job is finished: the summary may fail to print
        print(_format_rate(progress, seconds))
    if outcome.missing:
        print(
            f"This machine's shards of {folder} are done; others are still running: "
            f"{outcome.missing} of {plan.shards} shards are missing."
        )
        return 0
    _print_summary(plan, outcome.manifests, folder)
    return 0


def _format_rate(progress: JobProgress, seconds: float) -> str:
    """The rows of this run and its rate; rows of earlier runs do not count towards the rate."""
    ran, kept = progress.rows - progress.kept, progress.kept
    if not ran:
        return f"All {kept:,} rows were finished already; their shards are intact."
    earlier = f" {kept:,} others were finished already." if kept else ""
    return f"{ran:,} rows in {seconds:,.1f} s, {ran / max(seconds, 1e-9):,.0f} per second.{earlier}"


def _print_summary(plan: Plan, manifests: list[ShardManifest], folder: Path) -> None:
    bad = [row for m in manifests for row in m.quarantined]
    outside = sum(m.rows_outside_range for m in manifests)
    threshold = plan.threshold if plan.wanted.threshold is None else plan.wanted.threshold
    print(
        f"{plan.rows - len(bad):,} of {plan.rows:,} rows in {plan.shards} shards under "
        f"{folder}/shards."
    )
    if threshold is not None:
        print(
            f"{sum(m.outliers for m in manifests):,} rows are outliers: their reconstruction_error "
            f"exceeds {threshold:.6g} nats."
        )
    if outside:
        print(
            f"{outside:,} rows hold values outside the range of the training data, so their "
            f"scores are extreme: the column {outputs.OUTSIDE} counts these values."
        )
    if bad:
        print(f"{quarantine.share(len(bad), plan.rows)} are quarantined, because:")
        print(f"{quarantine.reasons(bad)}\nAll of them are in {folder / QUARANTINE}.")
    if (folder / "sheet.html").exists():
        print(f"Contact sheet: {folder}/sheet.html")


def _dry_run(args: argparse.Namespace) -> int:
    folder, shard_range, limit = _folder(args), _shard_range(args), Limit(args.max_quarantined)
    target = _target(args)
    plan, found = _plan(args, target, folder)
    for entry in plan.inputs:
        path = files.printable(entry.path) or "images"
        print(f"{entry.rows:>12,} rows, {entry.bytes:>14,} bytes  {path}")
    runs = list(found.runs(plan.data))
    print(f"{plan.rows:>12,} rows in total, {plan.shards} shards of up to {plan.shard_rows:,}")
    print(f"Model: {_describe_model(plan, {shapes.key: shapes for _, shapes in runs})}.")
    size = sum(count * outputs.bytes_per_row(plan, shapes) for count, shapes in runs)
    nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(nearest).free
    print(f"About {size / 1e9:,.3f} GB of output in {folder}; {free / 1e9:,.1f} GB are free.")
    count, part = _trial_rows(runs)
    seconds, bad = _trial_run(args, target, plan, found, count)
    processes = min(_processes(args) or 1, plan.shards)
    total = seconds / part / (processes * shard_range.count)
    print(
        f"{count / seconds:,.0f} rows per second in one process, measured on {count:,}; about "
        f"{total:,.0f} s with {processes} on each of {shard_range.count} machine(s)."
    )
    print(f"{quarantine.share(len(bad), count)} of this trial would be quarantined.")
    if bad:
        print(quarantine.reasons(bad))
    if len(bad) * plan.rows > limit.rows(plan.rows) * count:
        print(
            "At this rate the job would end with status "
            f"{exit_codes.QUARANTINED} and without {SUCCESS}: --max-quarantined {limit.text} "
            "allows fewer."
        )
    if size > free:
        print("Not enough disk space.")
    return 0


def _describe_model(plan: Plan, sizes: Mapping[tuple[int, ...], RowShapes]) -> str:
    b, most = plan.bundle, {plan.rows_per_batch(shapes) for shapes in sizes.values()}
    batches = f"batches of {max(most)}"
    if len(sizes) > 1:
        batches = f"{len(sizes):,} sizes, batches of {min(most)} to {max(most)} rows of one size"
    return f"{b.model} version {b.version} ({b.digest[:15]}), {batches}"


def _trial_rows(runs: Sequence[tuple[int, RowShapes]]) -> tuple[int, float]:
    """The number of the first rows that a trial runs, and their part of all bytes."""
    rows = taken = total = 0
    for count, shapes in runs:
        total += count * shapes.x.nbytes
        most = max(int(not rows), (_TRIAL_BYTES - taken) // shapes.x.nbytes)
        first = max(0, min(count, _TRIAL_ROWS - rows, most))
        rows, taken = rows + first, taken + first * shapes.x.nbytes
    return rows, taken / total


def _trial_run(
    args: argparse.Namespace, target: _Target, plan: Plan, found: FoundInputs, count: int
) -> tuple[float, list[BadRow]]:
    """Run the first rows and discard the results: the seconds, and the bad rows."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in found.files().items():
            (Path(folder) / name).write_bytes(content)
        config = WorkerConfig(Path(folder), plan, target.bundle, args.provider, _server(args))
        reconstruct = worker.create_reconstructor(config)
        rows = RowReader(plan, Path(folder), reconstruct.consecutive)
        with contextlib.closing(rows):
            list(reconstruct(rows.read(0, min(count, plan.batch_rows))))  # warm-up
            start = time.monotonic()
            results = list(reconstruct(rows.read(0, count)))
            seconds = time.monotonic() - start
            return seconds, [bad for result in results for bad in result.bad]


@dataclass(frozen=True)
class _Target:
    """The model of the job. bundle: its folder; None: a server runs the model."""

    bundle: Path | None
    bundle_id: BundleId
    data: ModelRows
    unavailable: Mapping[str, str]
    training_scores: dict[str, Any]
    threshold: Threshold | None
    batch_bytes: int = BATCH_BYTES


def _target(args: argparse.Namespace) -> _Target:
    server = _server(args)
    if server is not None:
        info = remote.get_model(server, args.model)
        # How many rows fit into a message also bounds max_rows: batches are as small as that.
        message = info.limits.max_message_bytes
        if info.limits.max_rows < min(args.batch_rows, info.default.rows_in(message)):
            raise ConfigError(
                f"--batch-rows {args.batch_rows}: {args.server} accepts at most "
                f"{info.limits.max_rows} rows per message."
            )
        by = info.served_by
        bundle_id = BundleId(by.model, by.version, by.digest)
        rest = info.unavailable, info.training_scores, info.threshold
        # Of the floats in a response, one byte of x may bring several. Categorical columns bring as
        # many for each column as the largest has levels, so the server's own limit counts too.
        least = info.smallest  # of larger rows, fewer bytes belong to one byte of x
        allowed = least.rows_in(message, args.contributions) * least.x.nbytes
        batch_bytes = min(BATCH_BYTES, message // 16, allowed)
        return _Target(None, bundle_id, ModelRows.of(info), *rest, batch_bytes)
    loaded = load_bundle(Path(args.bundle))
    m = loaded.manifest
    bundle_id = BundleId(m.model, m.version, loaded.digest)
    # The version's own folder: a worker may find a newer version.
    rest = m.unavailable, m.training_scores, m.threshold
    return _Target(loaded.path, bundle_id, ModelRows.of(m), *rest)


def _server(args: argparse.Namespace) -> RemoteServer | None:
    if not args.server:
        return None
    return RemoteServer(
        args.server, CredentialFiles(args.tls_ca, args.tls_cert, args.tls_key, args.token_file)
    )


def _plan(args: argparse.Namespace, target: _Target, folder: Path) -> tuple[Plan, FoundInputs]:
    """The requested plan, and the inputs that it is made of."""
    wanted = _output_spec(args, target)
    check_output_spec(wanted, target.unavailable, target.data)
    options = ReadOptions(args.column, args.id_column, args.fit)
    known = job.known_plan(folder)
    found = inputs.find_inputs(args.input, target.data, options, known, folder)
    print(f"--input: {found.counts}.", flush=True)
    plan = Plan(
        bundle=target.bundle_id,
        data=target.data,
        inputs=found.inputs,
        wanted=wanted,
        batch_rows=max(1, args.batch_rows),
        fit=args.fit,
        batch_bytes=target.batch_bytes,
        training_scores=target.training_scores if wanted.scores else {},
        threshold=_threshold(wanted, target),
        files=dataclasses.asdict(found.counts),
    )
    outputs.check(plan)
    return with_shards(plan, found.runs(plan.data), args.shard_rows), found


def _threshold(wanted: OutputSpec, target: _Target) -> float | None:
    """The bundle's, if it is used."""
    if target.threshold is None or not wanted.scores or wanted.threshold is not None:
        return None
    return target.threshold.reconstruction_error


def _output_spec(args: argparse.Namespace, target: _Target) -> OutputSpec:
    """What the flags ask for. If no flag asks for scores and the model has none, they are left out
    and a line says so. Raises ConfigError."""
    if args.encode:
        others = {
            "--scores": args.scores,
            "--no-latents": args.no_latents,
            "--draw": args.draw,
            "--draw-x": args.draw_x,
            "--reconstruction": args.reconstruction != "none",
            "--threshold": args.threshold is not None,
            "--contributions": args.contributions,
        }
        if given := [flag for flag, is_given in others.items() if is_given]:
            raise ConfigError(f"--encode writes only z: use it without {' and '.join(given)}.")
        return OutputSpec(
            format=args.format,
            scores=False,
            latents=False,
            seed=args.seed,
            encode=args.encode,
            z_dtype=args.z_dtype,
        )
    if args.draw_x and args.reconstruction == "none":
        raise ConfigError("--draw-x draws the reconstruction. Add --reconstruction raw.")
    if args.z_dtype != "float32":
        raise ConfigError(f"--z-dtype {args.z_dtype} is for --encode only.")
    scores = args.scores
    needs_scores = {
        "--threshold": args.threshold is not None,
        "--contributions": args.contributions,
    }
    if given := [flag for flag, is_given in needs_scores.items() if is_given]:
        if scores is False:
            raise ConfigError(f"{' and '.join(given)}: leave --no-scores out; it needs scores.")
        scores = True
    if args.threshold is not None and not math.isfinite(args.threshold):
        raise ConfigError(f"--threshold {args.threshold}: expected a finite number of nats.")
    if scores is None:
        scores = "score" not in target.unavailable
        if not scores:
            print(f"No scores: this model {target.unavailable['score']}.", flush=True)
    return OutputSpec(
        format=args.format,
        scores=scores,
        latents=not args.no_latents,
        reconstruction=args.reconstruction,
        draw=args.draw,
        draw_x=args.draw_x,
        seed=args.seed,
        contributions=args.contributions,
        threshold=args.threshold,
    )


def _folder(args: argparse.Namespace) -> Path:
    if files.is_remote(args.output):
        raise ConfigError(
            f"--output {args.output}: must be a local or mounted directory (object stores lack "
            "atomic rename and locks). Copy it to the store once it has _SUCCESS."
        )
    return Path(args.output)


def _shard_range(args: argparse.Namespace) -> ShardRange:
    if not 0 <= args.shard_index < args.shard_count:
        raise ConfigError(
            f"--shard-index {args.shard_index} (or JOB_COMPLETION_INDEX) must be less than "
            f"--shard-count {args.shard_count}: indexes start at 0."
        )
    return ShardRange(args.shard_index, args.shard_count)


def _processes(args: argparse.Namespace) -> int:
    if args.executor == "ray":
        return int(args.processes)  # 0: as many as the cluster allows
    if args.processes or args.server:
        return int(args.processes) or 1
    return default_worker_count(args.provider)


def _flush() -> None:
    """Write buffered output now, while an error can still be reported. Raises OSError."""
    try:
        sys.stdout.flush()
    except OSError:
        # Python would flush again at exit and print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _print_error(message: str) -> None:
    print(f"latentd: {message}", file=sys.stderr)
