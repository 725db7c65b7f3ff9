"""What a new version costs callers: latency during a swap and outside it.

The script renames prepared versions into the served folder one after the other, under load. A swap
lasts from the rename until the server unloads the old version. It is compared with an equally long
time just before it, because the load of the machine changes within a run. Medians over the swaps.
Two loads: half of the server's capacity, and all of it. Usage: python tests/bench/bench_swaps.py
[--swaps 50] [--models mlp conv] [--out bench/swaps.json]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import models
import processes
import uvloop
from loadgen import Result, closed_loop, connect, open_loop
from processes import Process

from latentd.pb import vae_pb2 as pb

SAMPLE = "/vae.v1.VaeService/Sample"
IN_FLIGHT = 64
PAUSE = 0.5  # seconds from one swap to the next
FLAGS = ("--poll-seconds", "0.05", "--keep-versions", "1")

Span = tuple[float, float]


@dataclass
class Row:
    """One line of the table; latencies in milliseconds."""

    model: str
    load: str
    swaps: int
    swap_seconds: float  # median
    calls: int
    refused: int
    p99_before: float
    p99_during: float
    ratio: float  # of these two, swap by swap
    longest: float  # during a swap
    mib_before: float
    mib_after: float


async def swap(server: Process, root: Path, ready: list[Path]) -> list[Span]:
    """Publish these versions one after the other; returns when each swap started and ended."""
    spans = []
    for path in ready:
        await asyncio.sleep(PAUSE)
        server.new_log()
        began = time.perf_counter()
        path.rename(root / path.parent.name / path.name)
        while "Unloaded " not in server.new_log():  # noqa: ASYNC110 - another process's log
            await asyncio.sleep(0.005)
        spans.append((began, time.perf_counter()))
    await asyncio.sleep(PAUSE)
    return spans


def p99(latencies: list[float]) -> float:
    return statistics.quantiles(latencies, n=100)[98] * 1e3


async def measure(
    name: str, load: str, run: Callable[[], Awaitable[Result]], swaps: Awaitable[list[Span]], server
) -> Row:
    """Swap versions until none is left, while `run` makes load, run by run."""
    before = server.resident_bytes()
    swapping = asyncio.ensure_future(swaps)
    calls: list[tuple[float, float]] = []  # when it ended, how long it took
    refused = 0
    while not swapping.done():
        result = await run()
        calls += zip(result.ends, result.latencies, strict=True)
        refused += result.refused
    spans = swapping.result()

    def met(began: float, ended: float) -> list[float]:
        """How long the calls took that were in flight in that time."""
        return [took for end, took in calls if began <= end and end - took <= ended]

    during = [met(began, ended) for began, ended in spans]
    just_before = [p99(met(2 * began - ended, began)) for began, ended in spans]
    while_swapping = [p99(latencies) for latencies in during]
    ratios = [d / b for d, b in zip(while_swapping, just_before, strict=True)]
    return Row(
        name,
        load,
        len(spans),
        statistics.median(ended - began for began, ended in spans),
        len(calls),
        refused,
        statistics.median(just_before),
        statistics.median(while_swapping),
        statistics.median(ratios),
        max(map(max, during)) * 1e3,
        before / 2**20,
        server.resident_bytes() / 2**20,
    )


async def compare(name: str, swaps: int, seconds: float) -> list[Row]:
    with contextlib.ExitStack() as stack:
        root, prepared = (Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in "ab")
        models.publish(root, name)
        ready = [models.publish(prepared, name) for _ in range(2 * swaps + 1)][1:]
        server = stack.enter_context(processes.server(root, *FLAGS))
        requests = [pb.SampleRequest(count=1, seed=n).SerializeToString() for n in range(997)]
        load = await connect(server.port, SAMPLE, requests)
        capacity = (await closed_loop(load, IN_FLIGHT, 2.0)).rate

        async def half() -> Result:
            return await open_loop(load, capacity / 2, seconds)

        async def full() -> Result:
            return await closed_loop(load, IN_FLIGHT, seconds)

        rows = []
        for kind, run, some in (("half", half, ready[:swaps]), ("full", full, ready[swaps:])):
            row = await measure(name, kind, run, swap(server, root, some), server)
            show(row)
            rows.append(row)
    return rows


def show(row: Row) -> None:
    print(
        f"{row.model:5} {row.load:5} {row.swaps} swaps of {row.swap_seconds:.2f} s, "
        f"{row.calls} calls, {row.refused} refused; p99 ms: before {row.p99_before:.1f}, "
        f"during {row.p99_during:.1f} ({row.ratio:.2f}x), longest {row.longest:.0f}; "
        f"MiB: {row.mib_before:.0f}, then {row.mib_after:.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--swaps", type=int, default=50, help="under each load (50)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each run of load (1)")
    parser.add_argument("--models", nargs="+", default=list(models.MODELS), choices=models.MODELS)
    parser.add_argument("--out", type=Path, default=Path("bench/swaps.json"))
    args = parser.parse_args()
    rows = [uvloop.run(compare(name, args.swaps, args.seconds)) for name in args.models]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps([asdict(row) for row in itertools.chain(*rows)], indent=2))
    print(f"Written to {args.out}.")


if __name__ == "__main__":
    main()
