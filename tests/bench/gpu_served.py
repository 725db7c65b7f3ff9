"""What the server makes of a GPU: Sample and Reconstruct through gRPC."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import processes
from gpu_nets import SMALL, Net, latents
from gpu_table import Bench, ratio
from loadgen import Connection, closed_loop, connect

from serving import codec
from serving.client import Client
from serving.pb import vae_pb2 as pb

SAMPLE = "/vae.v1.VaeService/Sample"
RECONSTRUCT = "/vae.v1.VaeService/Reconstruct"


async def through_grpc(b: Bench, net: Net) -> None:
    """64 images a request, with as many workers as it takes, beside the engine alone."""
    graph, z = b.graph(net, cuda_graphs=True), latents(64, net).numpy()
    alone = statistics.median(b.rates({"engine": lambda: graph.run(z, ["x"])})["engine"]) * 64
    graph.close()
    requests = [pb.SampleRequest(count=64, seed=n).SerializeToString() for n in range(97)]
    for workers in b.workers:
        flags = ("--provider", b.device, "--workers", str(workers))
        with processes.server(b.path(net).parents[1], *flags) as server:
            calls = [await connect(server.port, SAMPLE, requests) for _ in range(2 * workers)]
            await asyncio.gather(*(closed_loop(call, 8, b.seconds) for call in calls))
            with busy(b.device) as shares:
                results = await asyncio.gather(
                    *(closed_loop(call, 8, b.seconds * b.rounds) for call in calls)
                )
        rate = sum(result.rate for result in results) * 64
        share = f", GPU busy {statistics.mean(shares):.0f} %" if shares else ""
        detail = f"{rate:.0f} and {alone:.0f} images/s{share}"
        work = f"{net.name}, through gRPC, {workers} worker(s) / engine"
        b.say(work, rate / alone, None if net is SMALL else 0.85, detail)


@contextmanager
def busy(device: str) -> Iterator[list[float]]:
    """Per cent of time in which a kernel ran, as the driver says, while inside."""
    shares: list[float] = []
    done = threading.Event()

    def look() -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not done.wait(0.2):
            told = subprocess.run(query, capture_output=True, text=True, check=False)
            shares.extend(float(line) for line in told.stdout.split() if line.isdigit())

    looking = threading.Thread(target=look)
    if device == "cuda":
        looking.start()
    try:
        yield shares
    finally:
        done.set()
        if looking.ident:
            looking.join()


async def one_caller(b: Bench, net: Net) -> None:
    """One image at a time, beside a bare echo and the engine's own time."""
    graph, z = b.graph(net, cuda_graphs=True), latents(1, net).numpy()
    alone = 1 / statistics.median(b.rates({"engine": lambda: graph.run(z, ["x"])})["engine"])
    graph.close()
    requests = [pb.SampleRequest(count=1, seed=n).SerializeToString() for n in range(97)]
    flags = ("--provider", b.device, "--workers", "1")
    with (
        processes.server(b.path(net).parents[1], *flags) as server,
        processes.echo(int(np.prod(net.shape)) + 100) as echo,
    ):
        sample = await connect(server.port, SAMPLE, requests)
        bare = await connect(echo.port, "/bench/Echo", requests)
        ratios, taken = [], []
        for _ in range(b.rounds):
            theirs = (await closed_loop(bare, 1, b.seconds)).percentile(0.5)
            taken.append((await closed_loop(sample, 1, b.seconds)).percentile(0.5))
            ratios.append((theirs + alone) / taken[-1])
    detail = f"p50 {statistics.median(taken) * 1e6:.0f} us, engine {alone * 1e6:.0f} us"
    work = f"{net.name}, one caller: (echo's p50 + engine's) / p50"
    b.say(work, statistics.median(ratios), None, detail)


async def reconstructed(b: Bench, net: Net) -> None:
    """Images through both graphs with z on the device, beside the same through host memory."""
    rng = np.random.default_rng(0)
    for rows, in_flight in ((64, 8), (1, 1)):
        x = [rng.integers(0, 256, (rows, *net.shape), np.uint8) for _ in range(7)]
        requests = [pb.ReconstructRequest(x=codec.to_rows(one)).SerializeToString() for one in x]
        flags = ("--provider", b.device, "--latents-on-device")
        bundles = b.path(net).parents[1]
        with (
            processes.server(bundles, *flags, "true") as on,
            processes.server(bundles, *flags, "false") as off,
        ):
            ways = {
                "device": await connect(on.port, RECONSTRUCT, requests),
                "host": await connect(off.port, RECONSTRUCT, requests),
            }
            calls = await in_turns(b, ways, in_flight)
            chained = keeps_latents(on.port)
        rates = [statistics.median(calls[way]) * rows for way in ("device", "host")]
        detail = f"{rates[0]:.0f} and {rates[1]:.0f} images/s, {in_flight} in flight"
        if not chained:
            detail += "; both through the host: no lane that keeps z on the device here"
        work = f"{net.name}, Reconstruct, {rows} rows, z on the device / host"
        b.say(work, ratio(calls["device"], calls["host"]), None, detail)


async def in_turns(b: Bench, ways: dict[str, Connection], in_flight: int) -> dict[str, list[float]]:
    """Calls a second of each way, round by round, in turns; each is warmed first."""
    for call in ways.values():
        await closed_loop(call, in_flight, b.seconds)
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(b.rounds):
        for way, call in ways.items():
            found[way].append((await closed_loop(call, in_flight, b.seconds)).rate)
    return found


def keeps_latents(port: int) -> bool:
    """Whether a server runs both graphs in one go."""
    with Client(f"localhost:{port}") as client:
        return any(lane.lane == "reconstructor" for lane in client.get_model().lanes)
