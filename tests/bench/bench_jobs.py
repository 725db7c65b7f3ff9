"""Batch jobs beside ONNX Runtime in a loop over the same rows already in memory.

Both run the same graphs with one thread on batches of the same size and, in turns, the same rows.
The job reads its input, scores every row, and writes scores and latents, fsyncs included; it is
timed in a process that has its imports done, from the command to _SUCCESS. Where the machine has
other work the ratios of time say little; those of CPU time, start-up included, still do.
Usage: python tests/bench/bench_jobs.py [--rows 60000] [--rounds 3] [--models mlp conv]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import models
import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from serving.__main__ import main as latentd
from serving.jobs.plan import BATCH_ROWS

PICTURES = 10  # a folder holds one row in so many: to write them takes longer than to run them


class Cost(NamedTuple):
    """Of one row, in seconds."""

    time: float
    cpu: float  # of all processes together


@contextlib.contextmanager
def measured(rows: int, into: list[Cost]) -> Iterator[None]:
    began, before = time.perf_counter(), os.times()
    yield
    after = os.times()
    into.append(
        Cost((time.perf_counter() - began) / rows, sum(after[:4]) / rows - sum(before[:4]) / rows)
    )


def raw_loop(encoder: ort.InferenceSession, decoder: ort.InferenceSession, x: np.ndarray) -> None:
    for at in range(0, len(x), BATCH_ROWS):
        mean, _ = encoder.run(["mean", "log_var"], {"x": x[at : at + BATCH_ROWS]})
        decoder.run(["params"], {"z": mean})


def job(source: Path, bundle: Path, output: Path, rows: int, processes: int) -> None:
    """The whole command."""
    shutil.rmtree(output, ignore_errors=True)
    command = ("reconstruct", "--input", source, "--bundle", bundle, "--output", output)
    flags = ("--provider", "cpu", "--processes", processes, "--shard-rows", rows // 8)
    with contextlib.redirect_stdout(io.StringIO()):
        status = latentd([str(word) for word in (*command, *flags)])
    assert status == 0, status


def write_inputs(folder: Path, x: np.ndarray) -> dict[str, tuple[Path, int]]:
    """Each kind of input and its rows."""
    np.save(folder / "x.npy", x)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x[0].size)
    pq.write_table(pa.table({"x": flat}), folder / "x.parquet")
    (folder / "images").mkdir()
    for i, row in enumerate(x[::PICTURES]):
        Image.fromarray(row).save(folder / "images" / f"{i:06d}.png")
    return {
        ".npy": (folder / "x.npy", len(x)),
        "Parquet": (folder / "x.parquet", len(x)),
        "PNG folder": (folder / "images", len(x[::PICTURES])),
    }


def measure(name: str, x: np.ndarray, rounds: int, folder: Path) -> None:
    encoder, decoder = (session(graph) for graph in models.MODELS[name]())
    bundle = models.publish(folder / "models", name)
    sources = write_inputs(folder, x)
    cases = [(kind, n) for kind in sources for n in (1, 2)]
    costs: dict[tuple[str, int], list[Cost]] = {case: [] for case in cases}
    raw: list[Cost] = []
    for _ in range(rounds):
        with measured(len(x), raw):
            raw_loop(encoder, decoder, x)
        for kind, processes in cases:
            source, rows = sources[kind]
            with measured(rows, costs[kind, processes]):
                job(source, bundle, folder / "out", rows, processes)
    print(f"{name:5} raw loop                 {1 / median(raw, 'time'):8.0f} rows/s")
    for (kind, processes), found in costs.items():
        speed = ratio(raw, found, "time")
        cpu = ratio(raw, found, "cpu")
        more = ratio(costs[kind, 1], found, "time")
        print(
            f"{name:5} {kind:12} {processes} worker(s)  {1 / median(found, 'time'):8.0f} rows/s, "
            f"{speed:.2f} of the raw loop ({cpu:.2f} by CPU time), {more:.2f} of one worker",
            flush=True,
        )


def median(costs: list[Cost], what: str) -> float:
    return statistics.median(getattr(cost, what) for cost in costs)


def ratio(a: list[Cost], b: list[Cost], what: str) -> float:
    """The median over the rounds: a round's parts met the same machine."""
    return statistics.median(getattr(x, what) / getattr(y, what) for x, y in zip(a, b, strict=True))


def session(graph: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(graph, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=models.MODELS, default=list(models.MODELS))
    args = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, medians of {args.rounds} rounds of {args.rows:,} rows")
    x = np.random.default_rng(0).integers(0, 256, (args.rows, *models.SHAPE), np.uint8)
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, x if name == "mlp" else x[: args.rows // 4], args.rounds, Path(folder))


if __name__ == "__main__":
    main()
