"""A whole job: plan it or go on with it, share it out, finish it."""

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
from latentd.jobs.inputs import PLAN, Rows
from latentd.jobs.plan import Plan, check_same
from latentd.jobs.progress import Progress
from latentd.jobs.quarantine import Limit
from latentd.jobs.store import QUARANTINE, SUCCESS, ShardManifest, Store, to_json
from latentd.jobs.worker import Failed, Failure, WorkerConfig


@dataclass(frozen=True, slots=True)
class ShardRange:
    """Which part of the job is done here: shards index, index + count, ... of all."""

    index: int = 0
    count: int = 1


def settle(asked: Plan, beside: Mapping[str, bytes], store: Store) -> None:
    """Begin the job that is asked for, or go on with it if it is the one in the folder; the job's
    lock is held. beside: the files that belong to the plan. Raises ConfigError where another job is
    there."""
    begun = known_plan(store.folder)
    if begun is not None:
        check_same(begun, asked)
    elif any((store.folder / "shards").iterdir()):
        raise ConfigError(f"{store.folder} holds shards and no plan. Give another --output.")
    there = all((store.folder / name).exists() for name in beside)
    if begun != asked or not there:  # new, or the same inputs with other times
        for name, content in beside.items():
            store.publish(name, content)
        store.publish(PLAN, asked.to_json())


def known_plan(folder: Path) -> Plan | None:
    """The plan in `folder`; None: no job was begun there."""
    path = folder / PLAN
    return Plan.from_json(path.read_bytes()) if path.exists() else None


def run(
    setting: WorkerConfig,
    share: ShardRange,
    processes: int,
    progress: Progress,
    executor: str = "processes",
) -> None:
    """Commit every shard of a share. executor: processes | ray.

    Raises Failed, BadData, OSError, LatentdError.
    """
    plan = setting.plan
    shards = list(range(plan.shards))[share.index :: share.count]
    store = Store(setting.output, plan.digest, outputs.suffix(plan))
    try:
        processes = min(processes, len(shards))
        if executor == "ray" and shards:
            ray_data.run(setting, shards, processes, progress)
        elif processes > 1:
            _run_many(setting, shards, processes, progress)
        elif shards:
            worker.work(plan, shards, store, worker.reconstruction(setting), progress)
    finally:
        store.close()


def _run_many(
    setting: WorkerConfig, shards: Sequence[int], processes: int, progress: Progress
) -> None:
    spawn = multiprocessing.get_context("spawn")  # no thread or session is to be forked
    running: dict[Connection, Any] = {}
    failures: list[Failure] = []
    for first in range(processes):
        ours, theirs = spawn.Pipe(duplex=False)
        share = list(shards[first::processes])
        child = spawn.Process(target=worker.process, args=(setting, share, theirs))
        child.start()
        theirs.close()
        running[ours] = child
    try:
        while running:
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                try:
                    said = ready.recv()
                except EOFError:
                    child = running.pop(ready)
                    child.join()
                    if child.exitcode and not failures:
                        failures.append(_death(child.exitcode))
                    continue
                if isinstance(said, Failure):
                    failures.append(said)
                else:
                    progress(said)
    finally:
        for child in running.values():
            child.terminate()
        for child in running.values():
            child.join()
    if failures:
        raise Failed(failures[0])


def _death(code: int) -> Failure:
    return Failure(
        exit_codes.SOFTWARE,
        f"A worker process was ended by signal {-code}; out of memory, perhaps. What is committed "
        "stays: repeat the command to go on, with fewer --processes if memory was short.",
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """manifests: of the shards that are committed; missing: how many are not yet, all of them other
    machines'; the job is finished when there are none."""

    manifests: list[ShardManifest]
    missing: int


def finish(setting: WorkerConfig, share: ShardRange, limit: Limit) -> Outcome:
    """Once a share is done: write what only a whole job has, if the job is whole.

    Raises BadData where the inputs changed, ShardsLost, TooManyQuarantined, OSError, LatentdError.
    """
    plan = setting.plan
    store = Store(setting.output, plan.digest, outputs.suffix(plan))
    try:
        with store.locked(None, wait=True):
            found = [store.committed(index) for index in range(plan.shards)]
            _check_own(found, share, store)
            manifests = [manifest for manifest in found if manifest is not None]
            missing = len(found) - len(manifests)
            if not missing and not (store.folder / SUCCESS).exists():
                _finish(setting, store, manifests, limit)
            return Outcome(manifests, missing)
    finally:
        store.close()


def _check_own(found: Sequence[ShardManifest | None], share: ShardRange, store: Store) -> None:
    """Raise ShardsLost where a shard of this share, all of which was committed, is not there."""
    own = range(share.index, len(found), share.count)
    lost = [str(store.file(index)) for index in own if found[index] is None]
    if lost:
        raise ShardsLost(
            f"{len(lost)} shard(s) that this job had finished are gone, or cannot be read: "
            f"{', '.join(lost[:3])}{' and others' if len(lost) > 3 else ''}. Somebody removed "
            "them, or the disk lost them. Repeat the command: it makes only these again."
        )


def _finish(
    setting: WorkerConfig, store: Store, manifests: Sequence[ShardManifest], limit: Limit
) -> None:
    """Write what only a whole job has; the job's lock is held."""
    plan = setting.plan
    changed = inputs.changed(plan, store.folder)
    if changed:
        raise BadData(
            f"{', '.join(changed)} changed while the job ran: what is there now is other than what "
            "was read. Start again with another --output, or restore it and repeat the command."
        )
    written = sum(m.rows for m in manifests)
    quarantined = [row for m in manifests for row in m.quarantined]
    if written + len(quarantined) != plan.rows:
        raise WorkerDied(
            f"{plan.rows} rows went in, {written} came out and {len(quarantined)} were quarantined."
        )
    lines = b"".join(_line({"row": b.row, "id": b.id, "reason": b.reason}) for b in quarantined)
    store.publish(QUARANTINE, lines)
    allowed = limit.rows(plan.rows)
    if len(quarantined) > allowed:
        raise TooManyQuarantined(
            f"{quarantine.share(len(quarantined), plan.rows)} are quarantined; --max-quarantined "
            f"{limit.text} allows {allowed:,}. The reasons:\n{quarantine.reasons(quarantined)}\n"
            f"Every one is in {store.folder / QUARANTINE}. The job is done but for {SUCCESS}: if "
            "these rows may be missing, repeat the command with a higher --max-quarantined, which "
            "runs no row again."
        )
    for name, data in _sheet(setting, store, manifests).items():
        store.publish(name, data)
    store.sweep()
    facts = {"plan": plan.digest, "shards": plan.shards, "rows": plan.rows, "written": written}
    store.publish(SUCCESS, to_json(facts | {"quarantined": len(quarantined)}))


def _sheet(
    setting: WorkerConfig, store: Store, manifests: Sequence[ShardManifest]
) -> dict[str, bytes]:
    """The contact sheet's files; none where every row is quarantined."""
    plan = setting.plan
    wanted = dataclasses.replace(plan.wanted, reconstruction="raw", latents=False)
    with_x = dataclasses.replace(setting, plan=dataclasses.replace(plan, wanted=wanted))
    rows = Rows(plan, store.folder)
    try:
        return contact_sheet.draw(plan, manifests, rows, worker.reconstruction(with_x))
    finally:
        rows.close()


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"
