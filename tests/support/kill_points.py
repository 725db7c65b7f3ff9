"""A driver for test_faults: kill a job at every step of its commits, one step at a time.

Usage: kill_points.py FOLDER BATCH_ARGUMENTS...  The driver adds --output. Each attempt is a forked
process that counts its fsync, rename and unlink calls and sends itself SIGKILL before or after the
n-th. Then the command runs again without a kill. For each n the driver prints KILLED and a JSON
object: the place of the kill, the manifests that were wrong then, and the exit status and output
folder of the second run.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import onnxruntime  # noqa: F401 (imported once, before the forks)
import pyarrow.parquet  # noqa: F401
import tqdm  # noqa: F401

import latentd.jobs.command  # noqa: F401
from latentd.__main__ import main

WATCHED = ("fsync", "rename", "unlink")


def kill_at(step: int, record: Path) -> None:
    """Kill this process before or after a watched call: step 1 is before the first call."""
    steps = 0

    def count_step(name: str) -> None:
        nonlocal steps
        steps += 1
        if steps == step:
            record.write_text(name)
            os.kill(os.getpid(), signal.SIGKILL)

    for name in WATCHED:
        real = getattr(os, name)

        def watched(*args, real=real, name=name, **kwargs):
            count_step(f"before {name}")
            result = real(*args, **kwargs)
            count_step(f"after {name}")
            return result

        setattr(os, name, watched)


def torn(output: Path) -> list[str]:
    """Manifests whose file is missing or has other bytes: they would mislead a reader, who trusts
    manifests."""
    found = []
    for path in (output / "shards").glob("_*.json"):
        shard = path.with_name(f"{path.stem[1:]}.parquet")
        data = shard.read_bytes() if shard.exists() else b""
        if hashlib.sha256(data).hexdigest() != json.loads(path.read_bytes())["sha256"]:
            found.append(path.name)
    return found


def forked(work) -> int:
    """Run `work` in a child; returns its exit status, negative for a signal."""
    child = os.fork()
    if not child:
        try:
            os._exit(work())
        except BaseException:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run() -> None:
    folder, arguments = Path(sys.argv[1]), sys.argv[2:]
    for step in range(1, 1000):
        output, record = folder / f"step{step}", folder / f"step{step}.txt"
        command = [*arguments, "--output", str(output)]

        def run_and_kill(step=step, record=record, command=command) -> int:
            kill_at(step, record)
            return main(command)

        status = forked(run_and_kill)
        if status == 0:
            return  # not killed: there are no more steps
        wrong = torn(output)
        again = forked(lambda command=command: main(command))
        where = record.read_text() if record.exists() else ""
        line = {"step": step, "where": where, "status": status, "again": again, "torn": wrong}
        print("KILLED", json.dumps(line | {"output": str(output)}), flush=True)


if __name__ == "__main__":
    run()
