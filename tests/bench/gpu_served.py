"""How fast the server is on a GPU: Sample through gRPC."""

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
from gpu_table import Bench
from loadgen import closed_loop, connect

from latentd.pb import vae_pb2 as pb

SAMPLE = "/vae.v1.VaeService/Sample"


async def through_grpc(b: Bench, net: Net) -> None:
    """64 images a request for each number of workers, compared with the engine alone."""
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
        b.report_row(work, rate / alone, None if net is SMALL else 0.85, detail)


@contextmanager
def busy(device: str) -> Iterator[list[float]]:
    """Percent of the time in which a kernel ran, sampled from the driver until the context ends."""
    shares: list[float] = []
    done = threading.Event()

    def poll() -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not done.wait(0.2):
            answer = subprocess.run(query, capture_output=True, text=True, check=False)
            shares.extend(float(line) for line in answer.stdout.split() if line.isdigit())

    poller = threading.Thread(target=poll)
    if device == "cuda":
        poller.start()
    try:
        yield shares
    finally:
        done.set()
        if poller.ident:
            poller.join()


async def one_caller(b: Bench, net: Net) -> None:
    """One image at a time, compared with a bare echo plus the engine's own time."""
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
    b.report_row(work, statistics.median(ratios), None, detail)
