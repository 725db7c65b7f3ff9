"""Twice the load that the server can bear, and what its memory does over many calls.

`loadgen` makes the calls over one connection: it tells answers from rejections, and keeps a rate
whether or not earlier calls have ended. Usage: python tests/bench/bench_overload.py [--seconds 2]
[--rounds 5] [--models mlp conv] [--out bench/overload.json]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import models
import numpy as np
import processes
import uvloop
from loadgen import Connection, closed_loop, connect, open_loop
from processes import Process

from latentd import codec
from latentd.pb import vae_pb2 as pb

SERVICE = "/vae.v1.VaeService/"


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
    """A server of one model."""

    model: str
    server: Process
    seconds: float
    rounds: int


def sample_requests(count: int) -> list[bytes]:
    return [pb.SampleRequest(count=count, seed=n).SerializeToString() for n in range(997)]


def reconstruct_requests() -> list[bytes]:
    x = np.random.default_rng(0).integers(0, 256, (97, 1, *models.SHAPE), np.uint8)
    rows = [pb.Rows(tensor=codec.to_tensor(image)) for image in x]
    return [pb.ReconstructRequest(x=row).SerializeToString() for row in rows]


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


async def measure(args: argparse.Namespace) -> list[Row]:
    table: list[Row] = []
    for name in args.models:
        with contextlib.ExitStack() as stack:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            models.publish(root, name)
            subjects = Subjects(
                model=name,
                server=stack.enter_context(processes.server(root, *args.flags.split())),
                seconds=args.seconds,
                rounds=args.rounds,
            )
            for images in (64, 1):
                rows = await overload(subjects, images)
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
    parser.add_argument("--out", type=Path, default=Path("bench/overload.json"))
    args = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, {args.rounds} rounds of {args.seconds:g} s; medians of ratios")
    table = uvloop.run(measure(args))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps([asdict(row) | {"met": row.met} for row in table], indent=2))
    print(f"Written to {args.out}.")


if __name__ == "__main__":
    main()
