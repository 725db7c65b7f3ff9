"""What a call costs: latentd, started in two ways, next to mosec, a bare echo and the engine.

h2load (Debian's nghttp2-client) makes the calls. Each round measures all servers in turns, one
after the other; absolute figures depend on the load of the machine, ratios within a round do not.
mosec is a server of another project, with a front in Rust over HTTP/1.1; give the Python of an
environment with it: pip install mosec==0.9.8 onnxruntime numpy.
Usage: python tests/bench/bench_serving.py [--mosec PYTHON] [--seconds 3] [--rounds 3]
[--models mlp conv] [--out bench/serving.json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import struct
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import h2load
import models
import numpy as np
import processes
from h2load import Callers, Load
from processes import Process

from latentd import bundle, codec
from latentd.models import loading
from latentd.pb import vae_pb2 as pb
from latentd.runtime import profiling
from latentd.runtime.engine import SessionFactory
from latentd.runtime.provider import Provider

PIXELS = models.SHAPE[0] * models.SHAPE[1]
IMAGES = 64  # of a call that asks for many
IMAGE = np.random.default_rng(0).integers(0, 256, (1, *models.SHAPE), np.uint8)
DEFAULT, ONE_WORKER, MOSEC, ECHO, ENGINE = "latentd", "one worker", "mosec", "echo", "engine"
ECHO_AND_ENGINE = "echo + engine"  # what one call takes at least: the way there, and one run
ALONE = Callers(1, 1)
_LATENTS = np.random.default_rng(0).normal(size=(4096, models.LATENT)).astype(np.float32)


@dataclass(frozen=True)
class Work:
    """What the calls of a row ask for, of latentd and of mosec."""

    name: str
    callers: Callers
    images: int
    method: str
    message: bytes
    path: str
    body: bytes


def _sample(name: str, callers: Callers, images: int, path: str) -> Work:
    message = pb.SampleRequest(count=images, seed=7).SerializeToString()
    body = struct.pack("<IQ", images, 7)
    return Work(name, callers, images, h2load.SERVICE + "Sample", message, path, body)


def _reconstruct(callers: Callers) -> Work:
    message = pb.ReconstructRequest(x=codec.to_rows(IMAGE)).SerializeToString()
    method = h2load.SERVICE + "Reconstruct"
    name, body = "Reconstruct 1 image", IMAGE.tobytes()
    return Work(name, callers, 1, method, message, "/reconstruct", body)


WORKS = (
    _sample("Sample 1 image", Callers(4, 16), 1, "/sample"),
    _reconstruct(Callers(4, 16)),
    _sample(f"Sample {IMAGES} images", Callers(4, 2), IMAGES, "/sample-many"),
    _sample("Sample 1 image", ALONE, 1, "/sample"),
)


@dataclass(frozen=True)
class Measured:
    """Medians over the rounds. rate: images a second; cpu_ms: of the server, a call; p50_ms: of
    a call; ratio: of the rate, or of the p50 if there is one caller, to that of DEFAULT."""

    model: str
    work: str
    callers: str
    server: str
    rate: float
    cpu_ms: float
    p50_ms: float
    ratio: float


def calls(name: str, server: Process, work: Work, seconds: float) -> Load:
    """Load of this work on a server."""
    length = h2load.for_seconds(seconds)
    if name == MOSEC:
        connections = work.callers.connections * work.callers.streams
        return h2load.http(server.port, work.path, work.body, connections, length)
    method = "/bench/Echo" if name == ECHO else work.method
    return h2load.grpc(server.port, method, work.message, work.callers, length)


class Engine:
    """The decoder in plain loops: without a server."""

    def __init__(self, path: Path, threads: int) -> None:
        loaded = bundle.load(path)
        _, signature = loading.signatures(loaded.manifest)
        self._graphs = [
            SessionFactory(Provider("cpu")).load(loaded.files[bundle.DECODER], signature, threads=1)
            for _ in range(threads)
        ]
        self._batch_rows = profiling.choose_batch_size(
            profiling.measure(self._run, PIXELS, 0.05), 0.05
        )

    def _run(self, rows: int, graph: int = 0) -> object:
        return self._graphs[graph].run(_LATENTS[:rows], ["x"])

    def rate(self, seconds: float) -> float:
        """Images a second of a loop in each thread, at the best batch."""
        images = [0] * len(self._graphs)
        end = time.perf_counter() + seconds

        def loop(graph: int) -> None:
            while time.perf_counter() < end:
                self._run(self._batch_rows, graph)
                images[graph] += self._batch_rows

        loops = [threading.Thread(target=loop, args=(graph,)) for graph in range(len(images))]
        for thread in loops:
            thread.start()
        for thread in loops:
            thread.join()
        return sum(images) / seconds

    def median_ms(self, seconds: float) -> float:
        """Of a run of one row."""
        runs, end = [], time.perf_counter() + seconds
        while (started := time.perf_counter()) < end:
            self._run(1)
            runs.append(time.perf_counter() - started)
        return statistics.median(runs) * 1e3


def measure(
    servers: dict[str, Process], engine: Engine, seconds: float
) -> dict[tuple[Work, str], tuple[float, float, float]]:
    """One round: images/s, CPU ms a call and median ms a call, of each work and server."""
    found: dict[tuple[Work, str], tuple[float, float, float]] = {}
    for work in WORKS:
        for kind, server in servers.items():
            if kind == ECHO and work.images > 1:
                continue
            before, started = server.cpu_seconds(), time.perf_counter()
            result = calls(kind, server, work, seconds).result()
            share = seconds / (time.perf_counter() - started)  # the warm-up costs CPU too
            cpu = (server.cpu_seconds() - before) * share / (result.rate * seconds)
            found[work, kind] = result.rate * work.images, cpu * 1e3, result.median * 1e3
        if work.images > 1:
            found[work, ENGINE] = engine.rate(seconds), 0.0, 0.0
        elif work.callers == ALONE:
            p50 = found[work, ECHO][2] + engine.median_ms(seconds)
            found[work, ECHO_AND_ENGINE] = 1e3 / p50, 0.0, p50
    return found


def summary(
    model: str, rounds: list[dict[tuple[Work, str], tuple[float, float, float]]]
) -> list[Measured]:
    """The medians of the rounds."""
    table = []
    for work, kind in rounds[0]:
        column = 2 if work.callers == ALONE else 0
        values = [found[work, kind] for found in rounds]
        ratios = [found[work, kind][column] / found[work, DEFAULT][column] for found in rounds]
        rate, cpu, p50 = (statistics.median(of) for of in zip(*values, strict=True))
        table.append(
            Measured(
                *(model, work.name, str(work.callers), kind, rate, cpu, p50),
                statistics.median(ratios),
            )
        )
    return table


def show(table: list[Measured]) -> None:
    by_work: dict[tuple[str, str], list[Measured]] = defaultdict(list)
    for row in table:
        by_work[row.work, row.callers].append(row)
    for (work, callers), rows in by_work.items():
        print(f"{rows[0].model}: {work}, {callers} calls in flight")
        for row in rows:
            cost = f"{row.cpu_ms:8.3f} ms of CPU a call {row.p50_ms:8.2f} ms p50"
            print(
                f"  {row.server:13} {row.rate:10,.0f} images/s  {row.ratio:5.2f} of latentd's"
                f"{'' if row.server in (ENGINE, ECHO_AND_ENGINE) else cost}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mosec", metavar="PYTHON", help="of an environment with mosec")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run (3)")
    parser.add_argument("--rounds", type=int, default=3, help="of each comparison (3)")
    parser.add_argument("--models", nargs="+", default=list(models.MODELS), choices=models.MODELS)
    parser.add_argument("--flags", default="", help="more flags for latentd, in one string")
    parser.add_argument("--out", type=Path, default=Path("bench/serving.json"))
    args = parser.parse_args()
    h2load.require()
    cpus = len(os.sched_getaffinity(0))
    print(f"{cpus} CPUs, {args.rounds} rounds of {args.seconds:g} s in turns; medians")
    table: list[Measured] = []
    for name in args.models:
        with contextlib.ExitStack() as stack:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            path = models.publish(root, name)
            flags = args.flags.split()
            started = {
                DEFAULT: processes.server(root, *flags, workers=None),
                ONE_WORKER: processes.server(root, *flags),
                ECHO: processes.echo(PIXELS + 100),
            }
            if args.mosec:
                started[MOSEC] = processes.mosec(args.mosec, path)
            servers = {kind: stack.enter_context(server) for kind, server in started.items()}
            engine = Engine(path, cpus)
            rounds = [measure(servers, engine, args.seconds) for _ in range(args.rounds)]
        rows = summary(name, rounds)
        show(rows)
        table += rows
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps([asdict(row) for row in table], indent=2))
    print(f"Written to {args.out}.")


if __name__ == "__main__":
    main()
