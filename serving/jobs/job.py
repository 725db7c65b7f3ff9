"""A whole job: start or resume it, run its shards, finish it."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from latentd.errors import BadData, ConfigError
from latentd.jobs import contact_sheet, exit_codes, inputs, outputs, quarantine, ray_data, worker
from latentd.jobs.exit_codes import ShardsLost, TooManyQuarantined, WorkerDied
from latentd.jobs.inputs import PLAN, RowReader
from latentd.jobs.plan import Plan, check_same
from latentd.jobs.progress import JobProgress
from latentd.jobs.quarantine import Limit
from latentd.jobs.store import QUARANTINE, SUCCESS, ShardManifest, Store, to_json
from latentd.jobs.worker import Failure, WorkerConfig, WorkerFailed


@dataclass(frozen=True, slots=True)
class ShardRange:
    """The shards of this machine: index, index + count, ... of all shards."""

    index: int = 0
    count: int = 1


def start_or_resume(requested: Plan, files: Mapping[str, bytes], store: Store) -> None:
    """Start the requested job, or resume it if the folder has it; requires the job's lock.

    files: stored with the plan, by name. Raises ConfigError if the folder has another job.
    """
    known = known_plan(store.folder)
    if known is not None:
        check_same(known, requested)
    elif any((store.folder / "shards").iterdir()):
        raise ConfigError(f"{store.folder} has shards but no plan. Use another --output.")
    complete = all((store.folder / name).exists() for name in files)
    if known != requested or not complete:  # new, or the same inputs with new stamps
        for name, content in files.items():
            store.publish(name, content)
        store.publish(PLAN, requested.to_json())


def known_plan(folder: Path) -> Plan | None:
    """The plan in `folder`; None: there is no job. Raises ConfigError."""
    path = folder / PLAN
    return Plan.from_json(path.read_bytes()) if path.exists() else None


def run(
    config: WorkerConfig,
    shard_range: ShardRange,
    processes: int,
    progress: JobProgress,
    executor: str = "processes",
) -> None:
    """Commit every shard of `shard_range`. executor: processes | ray.

    Raises WorkerFailed, BadData, OSError, LatentdError.
    """
    plan = config.plan
    shards = list(range(plan.shards))[shard_range.index :: shard_range.count]
    store = Store(config.output, plan.digest, outputs.suffix(plan))
    try:
        processes = min(processes, len(shards))
        if executor == "ray" and shards:
            ray_data.run(config, shards, processes, progress)
        elif processes > 1:
            _run_many(config, shards, processes, progress)
        elif shards:
            worker.run_shards(plan, shards, store, worker.create_reconstructor(config), progress)
    finally:
        store.close()


def _run_many(
    config: WorkerConfig, shards: Sequence[int], processes: int, progress: JobProgress
) -> None:
    spawn = multiprocessing.get_context("spawn")  # a fork would copy threads and sessions
    running: dict[Connection, Any] = {}
    failures: list[Failure] = []
    for first in range(processes):
        parent_conn, child_conn = spawn.Pipe(duplex=False)
        own_shards = list(shards[first::processes])
        child = spawn.Process(target=worker.worker_main, args=(config, own_shards, child_conn))
        child.start()
        child_conn.close()
        running[parent_conn] = child
    try:
        while running:
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                try:
                    message = ready.recv()
                except EOFError:
                    child = running.pop(ready)
                    child.join()
                    if child.exitcode and not failures:
                        failures.append(_death(child.exitcode))
                    continue
                if isinstance(message, Failure):
                    failures.append(message)
                else:
                    progress(message)
    finally:
        for child in running.values():
            child.terminate()
        for child in running.values():
            child.join()
    if failures:
        raise WorkerFailed(failures[0])


def _death(code: int) -> Failure:
    return Failure(
        exit_codes.SOFTWARE,
        f"Worker killed by signal {-code} (possibly out of memory). Committed shards are kept; "
        "rerun the command to resume, with fewer --processes if memory was short.",
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """manifests: of the committed shards; missing: number of shards that other machines still have
    to commit. The job is finished when it is 0."""

    manifests: list[ShardManifest]
    missing: int


def finish(config: WorkerConfig, shard_range: ShardRange, limit: Limit) -> Outcome:
    """Once this machine's shards are done: finish the job if all shards are committed.

    Raises BadData if the inputs changed, ShardsLost, TooManyQuarantined, OSError, LatentdError.
    """
    plan = config.plan
    store = Store(config.output, plan.digest, outputs.suffix(plan))
    try:
        with store.locked(None, wait=True):
            found = [store.committed(index) for index in range(plan.shards)]
            _check_own(found, shard_range, store)
            manifests = [manifest for manifest in found if manifest is not None]
            missing = len(found) - len(manifests)
            if not missing and not (store.folder / SUCCESS).exists():
                _finish(config, store, manifests, limit)
            return Outcome(manifests, missing)
    finally:
        store.close()


def _check_own(
    found: Sequence[ShardManifest | None], shard_range: ShardRange, store: Store
) -> None:
    """Raise ShardsLost if one of this machine's shards, all committed before, is missing."""
    own = range(shard_range.index, len(found), shard_range.count)
    lost = [str(store.file(index)) for index in own if found[index] is None]
    if lost:
        raise ShardsLost(
            f"{len(lost)} finished shard(s) are missing or unreadable: "
            f"{', '.join(lost[:3])}{' and others' if len(lost) > 3 else ''}. They were removed, or "
            "the disk lost them. Rerun the command: it makes only the missing shards."
        )


def _finish(
    config: WorkerConfig, store: Store, manifests: Sequence[ShardManifest], limit: Limit
) -> None:
    """Write the files of a finished job; requires the job's lock."""
    plan = config.plan
    changed = inputs.changed(plan, store.folder)
    if changed:
        raise BadData(
            f"{', '.join(changed)} changed while the job ran, so the results do not match the "
            "input. Start over with another --output, or restore the input and rerun the command."
        )
    written = sum(m.rows for m in manifests)
    quarantined = [row for m in manifests for row in m.quarantined]
    if written + len(quarantined) != plan.rows:
        raise WorkerDied(
            f"Row count mismatch: {plan.rows} rows read, {written} written, "
            f"{len(quarantined)} quarantined."
        )
    lines = b"".join(_line({"row": b.row, "id": b.id, "reason": b.reason}) for b in quarantined)
    store.publish(QUARANTINE, lines)
    allowed = limit.rows(plan.rows)
    if len(quarantined) > allowed:
        raise TooManyQuarantined(
            f"{quarantine.share(len(quarantined), plan.rows)} are quarantined; --max-quarantined "
            f"{limit.text} allows {allowed:,}. Reasons:\n{quarantine.reasons(quarantined)}\n"
            f"All of them are in {store.folder / QUARANTINE}. Only {SUCCESS} is missing: to accept "
            "these rows as missing, rerun the command with a higher --max-quarantined. No row "
            "runs again."
        )
    for name, data in _sheet(config, store, manifests).items():
        store.publish(name, data)
    store.sweep()
    content = {"plan": plan.digest, "shards": plan.shards, "rows": plan.rows, "written": written}
    bundle = dataclasses.asdict(plan.bundle)
    store.publish(SUCCESS, to_json(content | {"quarantined": len(quarantined), "bundle": bundle}))


def _sheet(
    config: WorkerConfig, store: Store, manifests: Sequence[ShardManifest]
) -> dict[str, bytes]:
    """The contact sheet's files; none if every row is quarantined, or the job only encodes."""
    plan = config.plan
    if plan.wanted.encode:
        return {}
    wanted = dataclasses.replace(plan.wanted, reconstruction="raw", latents=False)
    with_x = dataclasses.replace(config, plan=dataclasses.replace(plan, wanted=wanted))
    rows = RowReader(plan, store.folder)
    try:
        return contact_sheet.render(plan, manifests, rows, worker.create_reconstructor(with_x))
    finally:
        rows.close()


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"
