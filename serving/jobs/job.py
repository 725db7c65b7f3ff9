"""A whole job: plan it or go on with it, share it out, finish it."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from serving.errors import BadData, ConfigError
from serving.jobs import exits, inputs, outputs, ray_data, sheet, worker
from serving.jobs.exits import WorkerDied
from serving.jobs.inputs import NAMES, PLAN, Rows
from serving.jobs.plan import Plan, check_same
from serving.jobs.progress import Progress
from serving.jobs.store import QUARANTINE, SUCCESS, ShardManifest, Store, to_json
from serving.jobs.worker import Failed, Failure, Setting


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of the job is done here: shards index, index + count, ... of all."""

    index: int = 0
    count: int = 1


def settle(asked: Plan, names: bytes, store: Store) -> None:
    """Begin the job that is asked for, or go on with it if it is the one in the folder; the job's
    lock is held. Raises ConfigError where another job is there."""
    begun = known_plan(store.folder)
    if begun is not None:
        check_same(begun, asked)
    elif any((store.folder / "shards").iterdir()):
        raise ConfigError(f"{store.folder} holds shards and no plan. Give another --output.")
    if begun != asked:  # new, or the same inputs with other times
        store.publish(NAMES, names)
        store.publish(PLAN, asked.to_json())


def known_plan(folder: Path) -> Plan | None:
    """The plan in `folder`; None: no job was begun there."""
    path = folder / PLAN
    return Plan.from_json(path.read_bytes()) if path.exists() else None


def run(
    setting: Setting, share: Share, processes: int, progress: Progress, engine: str = "processes"
) -> list[ShardManifest] | None:
    """Do a share of the job and, if that was the last of it, finish it. engine: processes | ray.

    Returns every shard's manifest once the whole job is done; None: others are still at it. Raises
    Failed, BadData, OSError, LatentdError.
    """
    plan = setting.plan
    shards = list(range(plan.shards))[share.index :: share.count]
    store = Store(setting.output, plan.digest, outputs.suffix(plan))
    try:
        processes = min(processes, len(shards))
        if engine == "ray" and shards:
            ray_data.run(setting, shards, processes, progress)
        elif processes > 1:
            _run_many(setting, shards, processes, progress)
        elif shards:
            worker.work(plan, shards, store, worker.reconstruction(setting), progress)
        with store.locked(None, wait=True):
            return _finish(setting, store)
    finally:
        store.close()


def _run_many(setting: Setting, shards: Sequence[int], processes: int, progress: Progress) -> None:
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
                    progress(*said)
    finally:
        for child in running.values():
            child.terminate()
        for child in running.values():
            child.join()
    if failures:
        raise Failed(failures[0])


def _death(code: int) -> Failure:
    return Failure(
        exits.SOFTWARE,
        f"A worker process was ended by signal {-code}; out of memory, perhaps. What is committed "
        "stays: repeat the command to go on, with fewer --processes if memory was short.",
    )


def _finish(setting: Setting, store: Store) -> list[ShardManifest] | None:
    """Write what only a whole job has; the job's lock is held."""
    plan = setting.plan
    manifests = []
    for index in range(plan.shards):
        manifest = store.committed(index)
        if manifest is None:
            return None
        manifests.append(manifest)
    if (store.folder / SUCCESS).exists():
        return manifests
    changed = inputs.changed(plan, store.folder)
    if changed:
        raise BadData(
            f"{', '.join(changed)} changed while the job ran, so its results are of no one state "
            "of it. Start again with another --output."
        )
    written = sum(m.rows for m in manifests)
    quarantined = [row for m in manifests for row in m.quarantined]
    if written + len(quarantined) != plan.rows:
        raise WorkerDied(
            f"{plan.rows} rows went in, {written} came out and {len(quarantined)} were quarantined."
        )
    lines = b"".join(_line({"row": b.row, "id": b.id, "reason": b.reason}) for b in quarantined)
    store.publish(QUARANTINE, lines)
    for name, data in _sheet(setting, store, manifests).items():
        store.publish(name, data)
    store.sweep()
    facts = {"plan": plan.digest, "shards": plan.shards, "rows": plan.rows, "written": written}
    store.publish(SUCCESS, to_json(facts | {"quarantined": len(quarantined)}))
    return manifests


def _sheet(setting: Setting, store: Store, manifests: Sequence[ShardManifest]) -> dict[str, bytes]:
    """The contact sheet's files; none where rows are no images."""
    plan = setting.plan
    if not sheet.fits(plan.x):
        return {}
    wanted = dataclasses.replace(plan.wanted, reconstruction="raw", latents=False)
    with_x = dataclasses.replace(setting, plan=dataclasses.replace(plan, wanted=wanted))
    rows = Rows(plan, store.folder)
    try:
        return sheet.draw(plan, manifests, rows, worker.reconstruction(with_x))
    finally:
        rows.close()


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"
