"""Kill a job repeatedly and count its rows: none may be lost or doubled.

Usage: make count-jobs, or with [--rows 1000000] [--kills 6]:
    PYTHONPATH=. python tests/support/row_accounting.py
It runs a job to its end, then a second job that it kills with SIGKILL at random moments and finally
lets end, and compares the outputs. It prints the counts, and the peak memory compared with a job of
a tenth of the rows.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tests.support.processes import running

ROOT = Path(__file__).resolve().parents[2]
_PEAK = """
import resource, sys
from latentd.__main__ import main
status = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(status)
"""


def command(sources: Sequence[Path], bundle: Path, output: Path, *flags: object) -> list[str]:
    words = ("batch", "--input", *sources, "--bundle", bundle, "--output", output)
    return [str(word) for word in (*words, "--provider", "cpu", *flags)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def whole(words: list[str]) -> tuple[float, int]:
    """Run a job; returns its seconds and its peak memory in KiB."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, *words],
        cwd=ROOT,
        env=environment(),
        check=True,
        capture_output=True,
        text=True,
    )
    return time.monotonic() - start, int(done.stdout.split()[-1])


def killed(words: list[str], kills: int, seconds: float, seed: int) -> int:
    """Run a job `kills` times, each killed at a random moment within `seconds`, then to its end.

    Returns the number of kills that the job did not finish before.
    """
    moments, met = random.Random(seed), 0
    for _ in range(kills):
        with running(
            [sys.executable, "-m", "latentd", *words],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as job:
            try:
                job.wait(moments.uniform(0.2, 1) * seconds)
            except subprocess.TimeoutExpired:
                met += 1  # the end of the block kills it, and its workers
    subprocess.run(
        [sys.executable, "-m", "latentd", *words],
        cwd=ROOT,
        env=environment(),
        check=True,
        capture_output=True,
    )
    return met


def count(output: Path) -> np.ndarray:
    """The number of times each row is in the shards that have a manifest."""
    manifests = sorted((output / "shards").glob("_*.json"))
    shards = [m.with_name(f"{m.stem[1:]}.parquet") for m in manifests]
    rows = [pq.read_table(shard, columns=["row"])["row"].to_numpy() for shard in shards]
    return np.bincount(np.concatenate(rows))


def digests(output: Path) -> dict[str, str]:
    """sha256 of every file of an output except those that depend on the input's times."""
    return {
        str(p.relative_to(output)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in output.rglob("*")
        if p.is_file() and p.name not in (".locks", "plan.json")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--bundle", type=Path, help="of 28x28 bytes (the bench's MLP)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = args.bundle
        if bundle is None:
            sys.path.insert(0, str(ROOT / "tests" / "bench"))
            import models

            bundle = models.publish(folder / "models", "mlp")
        sources = []
        random_rows = np.random.default_rng(0)
        for part in range(10):
            sources.append(folder / f"{part}.npy")
            rows = (args.rows // 10, 28, 28)
            np.save(sources[-1], random_rows.integers(0, 256, rows, np.uint8))
        one = ("--processes", 1)
        seconds, peak = whole(command(sources, bundle, folder / "whole", *one))
        tenth = whole(command(sources[:1], bundle, folder / "tenth", *one))[1]
        print(
            f"{args.rows:,} rows in {seconds:.0f} s; peak memory {peak >> 10} MiB, for a tenth ",
            end="",
        )
        print(f"of the rows {tenth >> 10} MiB: {peak / tenth:.2f}x", flush=True)
        words = command(sources, bundle, folder / "killed", "--processes", 2)
        met = killed(words, args.kills, seconds / args.kills, seed=0)
        times = count(folder / "killed")
        print(
            f"killed {met} times: {(times == 0).sum() + args.rows - len(times)} rows lost, ", end=""
        )
        same = digests(folder / "killed") == digests(folder / "whole")
        print(f"{(times > 1).sum()} doubled, {(times == 1).sum():,} exactly once; ", end="")
        print(f"output {'identical to the byte' if same else 'DIFFERENT'}")
        if not same or len(times) != args.rows or (times != 1).any() or peak > 1.15 * tenth:
            sys.exit(1)


if __name__ == "__main__":
    main()
