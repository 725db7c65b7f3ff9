"""Batch jobs compared with a raw ONNX Runtime loop over the same rows in memory.

Both run the same graphs with one thread, on batches of the same size, in turns. The job reads its
input, scores every row, and writes scores and latents with fsync. It runs as its own process. Its
time goes from the command to _SUCCESS, minus its start-up: the time of the same command for one
batch, printed separately. Then the same job runs through a server, with and without a caller of 50
rows a second. That caller also runs while a job runs in process. Every ratio is printed with its
target and whether it is met. On a busy machine trust the ratios of CPU time, not those of time.
Usage: python tests/bench/bench_jobs.py [--rows 200000] [--rounds 3] [--models mlp conv]
       [--only remote]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import models
import numpy as np
import onnxruntime as ort
import processes
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from latentd.jobs.plan import BATCH_ROWS

PICTURES = 10  # a folder holds one row in ten: writing images takes longer than running them
ALONE_SECONDS = 6.0  # how long the caller is the only client
CALLS_PER_SECOND = 50
TURNS = 3  # a round's turns of the caller: a p99 of 300 calls is one call in a bad moment
HERE = Path(__file__).parent


class BatchTiming(NamedTuple):
    """In seconds."""

    time: float
    cpu: float  # of all processes of ours together

    def less(self, other: BatchTiming) -> BatchTiming:
        return BatchTiming(self.time - other.time, self.cpu - other.cpu)


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


@contextlib.contextmanager
def measured(into: list[BatchTiming]) -> Iterator[None]:
    began, before = time.perf_counter(), cpu_seconds()
    yield
    into.append(BatchTiming(time.perf_counter() - began, cpu_seconds() - before))


def raw_loop(encoder: ort.InferenceSession, decoder: ort.InferenceSession, x: np.ndarray) -> None:
    for at in range(0, len(x), BATCH_ROWS):
        mean, _ = encoder.run(["mean", "log_var"], {"x": x[at : at + BATCH_ROWS]})
        decoder.run(["params"], {"z": mean})


def job(source: Path, output: Path, *flags: object) -> None:
    """The whole command."""
    shutil.rmtree(output, ignore_errors=True)
    words = ("-m", "latentd", "batch", "--input", source, "--output", output, *flags)
    command = [sys.executable, *map(str, words)]
    subprocess.run(command, cwd=processes.ROOT, check=True, capture_output=True)


def write_inputs(folder: Path, x: np.ndarray) -> dict[str, tuple[Path, int]]:
    """Each kind of input and its rows."""
    np.save(folder / "one.npy", x[:BATCH_ROWS])
    flat = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x[0].size)
    pq.write_table(pa.table({"x": flat}), folder / "lists.parquet")
    data = pa.array([row.tobytes() for row in x], pa.binary())
    pq.write_table(pa.table({"x": data}), folder / "bytes.parquet")
    (folder / "images").mkdir()
    for i, row in enumerate(x[::PICTURES]):
        Image.fromarray(row).save(folder / "images" / f"{i:06d}.png")
    return {
        ".npy": (folder / "x.npy", len(x)),
        "Parquet, bytes": (folder / "bytes.parquet", len(x)),
        "Parquet, lists": (folder / "lists.parquet", len(x)),
        "PNG folder": (folder / "images", len(x[::PICTURES])),
    }


TARGETS = {".npy": 0.85, "Parquet, bytes": 0.6, "Parquet, lists": 0.6, "PNG folder": None}


def verdict(value: float, least: float | None = None, most: float | None = None) -> str:
    if least is not None:
        return f"target >= {least}: {'met' if value >= least else 'MISS'}"
    return "" if most is None else f"target <= {most}: {'met' if value <= most else 'MISS'}"


def measure(name: str, x: np.ndarray, rounds: int, folder: Path) -> None:
    """In process: each kind of input, by one worker and by two."""
    encoder, decoder = (session(graph) for graph in models.MODELS[name]())
    here = ("--bundle", folder / "models" / name, "--provider", "cpu")
    sources = write_inputs(folder, x)
    cases = [(kind, n) for kind in sources for n in (1, 2)]
    costs: dict[tuple[str, int], list[BatchTiming]] = {case: [] for case in cases}
    raw: list[BatchTiming] = []
    start: dict[int, list[BatchTiming]] = {1: [], 2: []}
    for _ in range(rounds):
        with measured(raw):
            raw_loop(encoder, decoder, x)
        for n, found in start.items():
            shards = ("--processes", n, "--shard-rows", BATCH_ROWS // 2)
            with measured(found):
                job(folder / "one.npy", folder / "out", *here, *shards)
        for kind, n in cases:
            source, rows = sources[kind]
            shards = ("--shard-rows", min(16384, rows // 8))
            with measured(costs[kind, n]):
                job(source, folder / "out", *here, "--processes", n, *shards)
    print(f"\n{name}: raw loop {len(x) / median(raw, 'time'):,.0f} rows/s")
    alone = median(start[1], "time"), median(start[1], "cpu")
    print(f"{name}: a job's start-up and end {alone[0]:.2f} s, {alone[1]:.2f} s of CPU")
    for (kind, n), whole in costs.items():
        rows = sources[kind][1]
        share = rows / len(x)
        net = [cost.less(first) for cost, first in zip(whole, start[n], strict=True)]
        speed, cpu = ratio(raw, net, "time") * share, ratio(raw, net, "cpu") * share
        line = f"{name}: {kind:15} {n} worker(s) {rows / median(net, 'time'):9,.0f} rows/s"
        if n == 1:
            print(f"{line}, {speed:.2f} of the raw loop {verdict(speed, least=TARGETS[kind])}")
            print(f"{'':{len(line)}}  {cpu:.2f} by CPU time {verdict(cpu, least=TARGETS[kind])}")
        else:
            one = [c.less(f) for c, f in zip(costs[kind, 1], start[1], strict=True)]
            more = ratio(one, net, "time")
            goal = 1.7 if kind == ".npy" else None
            print(f"{line}, {more:.2f} of one worker {verdict(more, least=goal)}", flush=True)


class Caller:
    """A client process that reconstructs one row at a time, see caller.py."""

    def __init__(self, target: str, rows: Path) -> None:
        words = (HERE / "caller.py", target, rows, CALLS_PER_SECOND)
        self._process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=processes.ROOT,
            env=os.environ | {"PYTHONPATH": str(processes.ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        output, _ = self._process.communicate()
        self.latencies: list[float] = json.loads(output)


def percentile(latencies: list[float], share: float) -> float:
    """In ms."""
    return 1e3 * sorted(latencies)[int(share * len(latencies))]


def measure_remote(name: str, rows: int, rounds: int, folder: Path) -> None:
    """Through a server of one worker: compared with in process, and its effect on a caller.

    The same caller also runs during a job in process, which does not use the server:
    that is what sharing the CPUs costs him, and the least that he can be made to wait.
    """
    source = folder / "x.npy"
    here = ("--bundle", folder / "models" / name, "--provider", "cpu", "--processes", 1)
    found: dict[str, list[BatchTiming]] = {"here": [], "there": [], "during": []}
    calls: dict[str, list[list[float]]] = {"alone": [], "during": [], "floor": []}
    with processes.server(folder / "models") as server:
        target = f"localhost:{server.port}"
        there = ("--server", target)
        for _ in range(rounds):
            with measured(found["here"]):
                job(source, folder / "out", *here)
            with measured(found["there"]):
                job(source, folder / "out", *there)
            for _ in range(TURNS):
                with Caller(target, source) as alone:
                    time.sleep(ALONE_SECONDS)
                with Caller(target, source) as during, measured(found["during"]):
                    job(source, folder / "out", *there)
                with Caller(target, source) as floor:
                    job(source, folder / "out", *here)
                for case, caller in zip(calls, (alone, during, floor), strict=True):
                    calls[case].append(caller.latencies)
    speed = ratio(found["here"], found["there"], "time")
    rate = rows / median(found["there"], "time")
    print(
        f"{name}: through a server    {rate:9,.0f} rows/s, {speed:.2f} of in process "
        f"{verdict(speed, least=0.7)}"
    )
    print(f"{name}: the same with a caller {rows / median(found['during'], 'time'):,.0f} rows/s")
    for share in (0.5, 0.9, 0.99):
        values = {
            case: [percentile(turn, share) for turn in turns] for case, turns in calls.items()
        }
        ms = {case: statistics.median(each) for case, each in values.items()}
        slower = {case: ms[case] / ms["alone"] for case in ("during", "floor")}
        print(
            f"{name}: a caller's p{100 * share:.0f} {ms['alone']:.1f} ms alone, "
            f"{ms['during']:.1f} ms during the job, {slower['during']:.2f}x "
            f"{verdict(slower['during'], most=1.5) if share == 0.99 else ''}; "
            f"{ms['floor']:.1f} ms, {slower['floor']:.2f}x during a job that shares only the CPUs",
            flush=True,
        )


def median(costs: list[BatchTiming], what: str) -> float:
    return statistics.median(getattr(cost, what) for cost in costs)


def ratio(a: list[BatchTiming], b: list[BatchTiming], what: str) -> float:
    """The median over the rounds; the parts of one round ran under the same load."""
    return statistics.median(getattr(x, what) / getattr(y, what) for x, y in zip(a, b, strict=True))


def session(graph: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(graph, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000, help="of the MLP; conv: an eighth")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=models.MODELS, default=list(models.MODELS))
    parser.add_argument("--only", choices=("here", "remote"), help="in process, or with a server")
    args = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, medians of {args.rounds} rounds of {args.rows:,} rows")
    x = np.random.default_rng(0).integers(0, 256, (args.rows, *models.SHAPE), np.uint8)
    for name in args.models:
        rows = x if name == "mlp" else x[: args.rows // 8]
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "x.npy", rows)
            models.publish(Path(folder) / "models", name)
            if args.only != "remote":
                measure(name, rows, args.rounds, Path(folder))
            if args.only != "here":
                measure_remote(name, len(rows), args.rounds, Path(folder))


if __name__ == "__main__":
    main()
