"""What serving costs: the server compared with a bare echo and with a raw ONNX Runtime loop.

Prints a table of ratios and writes them as JSON. One call of this script runs everything that it
compares in turns, round by round. Absolute figures depend on the load of the machine; ratios within
a round do not. Usage: python tests/bench/bench_serving.py [--seconds 2]
[--rounds 5] [--models mlp conv] [--out bench/serving.json]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import models
import numpy as np
import processes
import uvloop
from loadgen import Connection, Result, closed_loop, connect, open_loop
from processes import Process

from latentd import bundle, codec
from latentd.models import loading
from latentd.pb import vae_pb2 as pb
from latentd.runtime import profiling
from latentd.runtime.engine import SessionFactory
from latentd.runtime.provider import Provider

SERVICE = "/vae.v1.VaeService/"
PIXELS = models.SHAPE[0] * models.SHAPE[1]


@dataclass
class Row:
    """One line of the table."""

    model: str
    work: str
    measured: float
    reach: str  # as a comparison, e.g. ">= 2.2"
    detail: str

    @property
    def met(self) -> bool:
        relation, bound = self.reach.split()
        return self.measured >= float(bound) if relation == ">=" else self.measured <= float(bound)


@dataclass
class Subjects:
    """What is compared: a server of one model, an echo for each size of answer, the engine."""

    model: str
    server: Process
    echo: Process
    engine_cpu: float  # seconds of CPU for an image in the raw loop, at its best batch
    engine_wall: float  # seconds for a batch of one
    seconds: float
    rounds: int


def sample_requests(count: int) -> list[bytes]:
    return [pb.SampleRequest(count=count, seed=n).SerializeToString() for n in range(997)]


def reconstruct_requests() -> list[bytes]:
    x = np.random.default_rng(0).integers(0, 256, (97, 1, *models.SHAPE), np.uint8)
    rows = [pb.Rows(tensor=codec.to_tensor(image)) for image in x]
    return [pb.ReconstructRequest(x=row).SerializeToString() for row in rows]


async def spent(process: Process, run: Callable[[], object]) -> tuple[Result, float]:
    """A run of load and the CPU seconds `process` spent on it."""
    before = process.cpu_seconds()
    result = await run()  # type: ignore[misc]
    return result, process.cpu_seconds() - before


async def one_image_many_callers(s: Subjects) -> list[Row]:
    sample = await connect(s.server.port, SERVICE + "Sample", sample_requests(1))
    reconstruct = await connect(s.server.port, SERVICE + "Reconstruct", reconstruct_requests())
    echo = await connect(s.echo.port, "/bench/Echo", sample_requests(1))
    for warm in (sample, reconstruct, echo):
        await closed_loop(warm, 64, 0.5)
    rates, reconstructs, costs, echoes, latencies = [], [], [], [], []
    for _ in range(s.rounds):
        bare = await closed_loop(echo, 64, s.seconds)
        result, cpu = await spent(s.server, lambda: closed_loop(sample, 64, s.seconds))
        again = await closed_loop(reconstruct, 64, s.seconds)
        assert not result.refused + again.refused + bare.refused
        rates.append(result.rate / bare.rate)
        echoes.append(bare.rate)
        costs.append(cpu / result.answered * 1e3)
        reconstructs.append(again.rate / result.rate)
        latencies.append(result.percentile(0.99) * 1e3)
    median = statistics.median
    detail = f"{median(rates) * median(echoes):.0f}/s, echo {median(echoes):.0f}/s, " + (
        f"p99 {median(latencies):.1f} ms"
    )
    return [
        Row(
            s.model, "Sample 1 image, 64 in flight: rate / echo's", median(rates), ">= 2.2", detail
        ),
        Row(s.model, "  server CPU ms a request", median(costs), "<= 0.12", ""),
        Row(s.model, "Reconstruct likewise: rate / Sample's", median(reconstructs), ">= 0.8", ""),
    ]


async def many_images(s: Subjects) -> list[Row]:
    sample = await connect(s.server.port, SERVICE + "Sample", sample_requests(64))
    await closed_loop(sample, 8, 0.5)
    costs, rates = [], []
    for _ in range(s.rounds):
        result, cpu = await spent(s.server, lambda: closed_loop(sample, 8, s.seconds))
        costs.append(cpu / result.answered / 64)
        rates.append(result.rate * 64)
    cost = statistics.median(costs)
    detail = f"{cost * 1e6:.1f} us of CPU an image, engine alone {s.engine_cpu * 1e6:.1f} us, " + (
        f"{statistics.median(rates):.0f} images/s"
    )
    work = "Sample 64 images, 8 in flight: CPU an image / raw loop's"
    return [Row(s.model, work, cost / s.engine_cpu, "<= 1.35", detail)]


async def one_caller(s: Subjects) -> list[Row]:
    sample = await connect(s.server.port, SERVICE + "Sample", sample_requests(1))
    echo = await connect(s.echo.port, "/bench/Echo", sample_requests(1))
    ratios, latencies = [], []
    for _ in range(s.rounds):
        bare = await closed_loop(echo, 1, s.seconds)
        result = await closed_loop(sample, 1, s.seconds)
        ratios.append(result.percentile(0.5) / (bare.percentile(0.5) + s.engine_wall))
        latencies.append(result.percentile(0.5) * 1e3)
    detail = f"p50 {statistics.median(latencies):.2f} ms, engine {s.engine_wall * 1e3:.3f} ms"
    work = "one caller, one image: p50 / (echo's p50 + engine's)"
    return [Row(s.model, work, statistics.median(ratios), "<= 1.15", detail)]


async def overload(s: Subjects, images: int) -> list[Row]:
    """Calls at twice the measured peak rate, each with a deadline of 100 ms."""
    budget = 0.1
    peak_load = await connect(s.server.port, SERVICE + "Sample", sample_requests(images))
    pressed = await connect(s.server.port, SERVICE + "Sample", sample_requests(images), "100m")
    await closed_loop(peak_load, 64, 0.5)
    goodputs, tails, shed = [], [], []
    for _ in range(s.rounds):
        peak = await closed_loop(peak_load, 64, s.seconds)
        result = await open_loop(pressed, 2 * peak.rate, s.seconds)
        in_time = sum(latency <= 2 * budget for latency in result.latencies)
        goodputs.append(in_time / result.seconds / peak.rate)
        tails.append(result.percentile(0.99) / budget)
        shed.append(result.refused / (result.refused + result.answered))
    median = statistics.median
    detail = f"{median(shed):.0%} shed"
    work = f"twice the capacity, {images} images a call: goodput / peak"
    return [
        Row(s.model, work, median(goodputs), ">= 0.95", detail),
        Row(s.model, "  p99 of the admitted / budget (100 ms)", median(tails), "<= 2", ""),
    ]


async def memory(s: Subjects, requests: int) -> list[Row]:
    connections: list[Connection] = [
        await connect(s.server.port, SERVICE + "Sample", sample_requests(1)),
        await connect(s.server.port, SERVICE + "Sample", sample_requests(16)),
        await connect(s.server.port, SERVICE + "Reconstruct", reconstruct_requests()),
    ]

    async def mixed(count: int) -> None:
        sent = 0
        while sent < count:
            results = await asyncio.gather(*(closed_loop(c, 16, 1.0) for c in connections))
            sent += sum(result.answered for result in results)

    await mixed(requests // 10)
    before = s.server.resident_bytes()
    await mixed(requests)
    after = s.server.resident_bytes()
    detail = f"{before >> 20} MiB, then {after >> 20} MiB"
    return [
        Row(
            s.model, f"memory after {requests} requests / before", after / before, "<= 1.05", detail
        )
    ]


def engine_costs(path: Path, rounds: int) -> tuple[float, float]:
    """CPU seconds for an image at the best batch, and seconds for a batch of one."""
    loaded = bundle.load(path)
    _, signature = loading.signatures(loaded.manifest)
    # A second thread would cost CPU and save none.
    graph = SessionFactory(Provider("cpu")).load(loaded.files[bundle.DECODER], signature, threads=1)

    def run(rows: int) -> object:
        return graph.run(np.zeros((rows, models.LATENT), np.float32), ["x"])

    curve = profiling.measure(run, PIXELS, 0.05)
    rows = profiling.choose_batch_size(curve, 0.05)
    z = np.random.default_rng(0).normal(size=(rows, models.LATENT)).astype(np.float32)
    costs = []
    for _ in range(rounds):
        began, images = time.process_time(), 0
        while time.process_time() - began < 0.5:
            graph.run(z, ["x"])
            images += rows
        costs.append((time.process_time() - began) / images)
    return statistics.median(costs), curve[0].seconds


async def measure(args: argparse.Namespace) -> list[Row]:
    table: list[Row] = []
    for name in args.models:
        with contextlib.ExitStack() as stack:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            path = models.publish(root, name)
            cpu, wall = engine_costs(path, args.rounds)
            subjects = Subjects(
                model=name,
                server=stack.enter_context(processes.server(root, *args.flags.split())),
                echo=stack.enter_context(processes.echo(PIXELS + 100)),
                engine_cpu=cpu,
                engine_wall=wall,
                seconds=args.seconds,
                rounds=args.rounds,
            )
            works = (one_image_many_callers, many_images, one_caller)
            for work in (*works, partial(overload, images=64), partial(overload, images=1)):
                rows = await work(subjects)
                show(rows)
                table += rows
            if name == args.models[0] and args.memory:
                rows = await memory(subjects, args.memory)
                show(rows)
                table += rows
    return table


def show(rows: list[Row]) -> None:
    for row in rows:
        mark = "met " if row.met else "MISS"
        print(
            f"{row.model:5} {row.work:58} {row.measured:6.2f}  {row.reach:8} {mark}  {row.detail}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run (2)")
    parser.add_argument("--rounds", type=int, default=5, help="of each comparison (5)")
    parser.add_argument("--models", nargs="+", default=list(models.MODELS), choices=models.MODELS)
    parser.add_argument("--flags", default="", help="more flags for the server, in one string")
    parser.add_argument("--memory", type=int, default=200_000, help="requests, 0 to leave it out")
    parser.add_argument("--out", type=Path, default=Path("bench/serving.json"))
    args = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, {args.rounds} rounds of {args.seconds:g} s; medians of ratios")
    table = uvloop.run(measure(args))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps([asdict(row) | {"met": row.met} for row in table], indent=2))
    print(f"Written to {args.out}.")


if __name__ == "__main__":
    main()
