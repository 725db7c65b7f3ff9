"""Batch jobs beside ONNX Runtime in a loop over the same rows already in memory.

Both run the same graphs with one thread on batches of the same size and, in turns, the same rows.
The job reads its input, scores every row, and writes scores and latents, fsyncs included; it is
timed in a process that has its imports done, from the command to _SUCCESS. A worker more pays only
where CPUs are free.
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
from pathlib import Path

import models
import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from serving.__main__ import main as latentd
from serving.jobs.plan import BATCH_ROWS

PICTURES = 10  # a folder holds one row in so many: to write them takes longer than to run them


def raw_loop(encoder: ort.InferenceSession, decoder: ort.InferenceSession, x: np.ndarray) -> float:
    """Rows a second."""
    began = time.perf_counter()
    for at in range(0, len(x), BATCH_ROWS):
        mean, _ = encoder.run(["mean", "log_var"], {"x": x[at : at + BATCH_ROWS]})
        decoder.run(["params"], {"z": mean})
    return len(x) / (time.perf_counter() - began)


def job(source: Path, bundle: Path, output: Path, rows: int, processes: int) -> float:
    """Rows a second, of the whole command."""
    shutil.rmtree(output, ignore_errors=True)
    command = ("reconstruct", "--input", source, "--bundle", bundle, "--output", output)
    flags = ("--provider", "cpu", "--processes", processes, "--shard-rows", rows // 8)
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        status = latentd([str(word) for word in (*command, *flags)])
    assert status == 0, status
    return rows / (time.perf_counter() - began)


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
    rates: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    raw = []
    for _ in range(rounds):
        raw.append(raw_loop(encoder, decoder, x))
        for kind, processes in cases:
            source, rows = sources[kind]
            rates[kind, processes].append(job(source, bundle, folder / "out", rows, processes))
    print(f"{name:5} raw loop                {statistics.median(raw):8.0f} rows/s")
    for kind, processes in cases:
        found = rates[kind, processes]
        against_raw = statistics.median(a / b for a, b in zip(found, raw, strict=True))
        against_one = statistics.median(a / b for a, b in zip(found, rates[kind, 1], strict=True))
        print(
            f"{name:5} {kind:12} {processes} worker(s)  {statistics.median(found):8.0f} rows/s, "
            f"{against_raw:.2f} of the raw loop, {against_one:.2f} of one worker",
            flush=True,
        )


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
