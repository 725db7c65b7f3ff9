"""A driver for test_faults: kills a job at every step of its commits, one after the other.

Usage: killer.py FOLDER RECONSTRUCT_ARGUMENTS...  The job's --output is added here. Each attempt is
a forked process in which the calls that touch the disk are counted and, before or after the n-th,
SIGKILL comes; then the command is repeated, unharmed. Prints KILLED and a JSON object for each n:
where it was killed, the manifests that were wrong then, and the exit status and output folder of
the repetition.
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


def kill_at(step: int, told: Path) -> None:
    """Have this process killed at the step-th moment before or after a watched call."""
    moments = 0

    def moment(name: str) -> None:
        nonlocal moments
        moments += 1
        if moments == step:
            told.write_text(name)
            os.kill(os.getpid(), signal.SIGKILL)

    for name in WATCHED:
        real = getattr(os, name)

        def watched(*args, real=real, name=name, **kwargs):
            moment(f"before {name}")
            result = real(*args, **kwargs)
            moment(f"after {name}")
            return result

        setattr(os, name, watched)


def torn(output: Path) -> list[str]:
    """Manifests that vouch for a file which is not there, or is another: a reader, who trusts
    manifests, would be misled."""
    found = []
    for path in (output / "shards").glob("_*.json"):
        shard = path.with_name(f"{path.stem[1:]}.parquet")
        data = shard.read_bytes() if shard.exists() else b""
        if hashlib.sha256(data).hexdigest() != json.loads(path.read_bytes())["sha256"]:
            found.append(path.name)
    return found


def forked(work) -> int:
    """Run `work` in a child; gives its exit status, negative for a signal."""
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
        output, told = folder / f"step{step}", folder / f"step{step}.txt"
        command = [*arguments, "--output", str(output)]

        def harmed(step=step, told=told, command=command) -> int:
            kill_at(step, told)
            return main(command)

        status = forked(harmed)
        if status == 0:
            return  # it came through: there are no more steps
        misled = torn(output)
        again = forked(lambda command=command: main(command))
        where = told.read_text() if told.exists() else ""
        line = {"step": step, "where": where, "status": status, "again": again, "torn": misled}
        print("KILLED", json.dumps(line | {"output": str(output)}), flush=True)


if __name__ == "__main__":
    run()
