"""How many workers are worth it: the same load on servers of one and of two workers, in turns.

Each load comes over 16 connections, which the kernel distributes among the workers. The load
generator takes one CPU itself, so on a machine with two CPUs a second worker can gain little.
Usage: python tests/bench/bench_workers.py [--workers 1 2] [--seconds 2] [--rounds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import tempfile
from pathlib import Path

import models
import processes
import uvloop
from bench_serving import SERVICE, sample_requests
from loadgen import Connection, closed_loop, connect

CONNECTIONS = 16
WORKS = {"Sample 1 image, 64 in flight": (1, 4), "Sample 64 images, 16 in flight": (64, 1)}


async def load(connections: list[Connection], each: int, seconds: float) -> tuple[float, float]:
    """Calls a second over all connections, and the 99th percentile of their latency in ms."""
    results = await asyncio.gather(*(closed_loop(c, each, seconds) for c in connections))
    latencies = sorted(latency for result in results for latency in result.latencies)
    return sum(r.rate for r in results), latencies[int(0.99 * len(latencies))] * 1e3


async def measure(args: argparse.Namespace) -> None:
    for name in models.MODELS:
        with contextlib.ExitStack() as stack:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            models.publish(root, name)
            servers = {
                n: stack.enter_context(processes.server(root, workers=n)) for n in args.workers
            }
            for work, (count, each) in WORKS.items():
                rates: dict[int, list[float]] = {n: [] for n in servers}
                tails: dict[int, list[float]] = {n: [] for n in servers}
                costs: dict[int, list[float]] = {n: [] for n in servers}
                for _ in range(args.rounds):
                    for n, server in servers.items():
                        requests = sample_requests(count)
                        path = SERVICE + "Sample"
                        connections = [
                            await connect(server.port, path, requests) for _ in range(CONNECTIONS)
                        ]
                        await load(connections, each, 0.3)
                        before = server.cpu_seconds()
                        rate, tail = await load(connections, each, args.seconds)
                        cpu = server.cpu_seconds() - before
                        for connection in connections:
                            connection.close()
                        rates[n].append(rate)
                        tails[n].append(tail)
                        costs[n].append(cpu / (rate * args.seconds) * 1e3)
                for n in servers:
                    ratio = statistics.median(
                        a / b for a, b in zip(rates[n], rates[args.workers[0]], strict=True)
                    )
                    median = statistics.median
                    print(
                        f"{name:5} {work:32} {n} worker(s): {median(rates[n]):7.0f}/s, "
                        f"{ratio:.2f} of the first, p99 {median(tails[n]):6.1f} ms, "
                        f"{median(costs[n]):.3f} ms of CPU a call",
                        flush=True,
                    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run (2)")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, {CONNECTIONS} connections, medians of {args.rounds} rounds")
    uvloop.run(measure(args))


if __name__ == "__main__":
    main()
