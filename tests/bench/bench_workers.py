"""What a second worker is worth: the same load on servers of one and of two workers, in turns.

h2load (Debian's nghttp2-client) makes the calls, over 4, 8 and 16 connections with as many calls in
flight. It needs a part of a CPU too, so on a machine with two CPUs two workers are worth less than
twice one.
Usage: python tests/bench/bench_workers.py [--workers 1 2] [--connections 4 8 16] [--seconds 2]
[--rounds 5] [--models mlp conv]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path

import h2load
import models
import processes
from bench_serving import WORKS, Work
from h2load import Callers
from processes import Process

WORKS_FOR_TWO = [work for work in WORKS if work.callers != Callers(1, 1)]


def callers(work: Work, connections: int) -> Callers:
    """As many calls in flight as the work has, if they can be divided, over other connections."""
    in_flight = work.callers.connections * work.callers.streams
    return Callers(connections, max(1, in_flight // connections))


def measure(server: Process, work: Work, load: Callers, seconds: float) -> tuple[float, float]:
    """Calls a second, and ms of the server's CPU a call."""
    length = h2load.for_seconds(seconds)
    before, started = server.cpu_seconds(), time.perf_counter()
    result = h2load.grpc(server.port, work.method, work.message, load, length).result()
    share = seconds / (time.perf_counter() - started)  # the warm-up costs CPU too
    cpu = (server.cpu_seconds() - before) * share
    return result.rate, cpu / (result.rate * seconds) * 1e3


def compare(name: str, work: Work, servers: dict[int, Process], args: argparse.Namespace) -> None:
    """Measure one row of the table for each number of connections, and print it."""
    for connections in args.connections:
        load = callers(work, connections)
        rounds = [
            {n: measure(server, work, load, args.seconds) for n, server in servers.items()}
            for _ in range(args.rounds)
        ]
        for n in servers:
            rate, cost = (statistics.median(of) for of in zip(*(r[n] for r in rounds), strict=True))
            ratios = [found[n][0] / found[args.workers[0]][0] for found in rounds]
            print(
                f"{name:5} {work.name:20} {load!s:7} {n} worker(s): {rate:8,.0f} calls/s, "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) of the "
                f"first, {cost:.3f} ms of CPU a call",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--connections", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--seconds", type=int, default=2, help="of each run (2)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=list(models.MODELS), choices=models.MODELS)
    args = parser.parse_args()
    h2load.require()
    cpus = len(os.sched_getaffinity(0))
    print(f"{cpus} CPUs, {args.rounds} rounds of {args.seconds} s in turns; medians (least, most)")
    for name in args.models:
        with contextlib.ExitStack() as stack:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            models.publish(root, name)
            servers = {
                n: stack.enter_context(processes.server(root, workers=n)) for n in args.workers
            }
            for work in WORKS_FOR_TWO:
                compare(name, work, servers, args)


if __name__ == "__main__":
    main()
