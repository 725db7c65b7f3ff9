"""Rows of mixed sizes at full load, compared with each size alone; and one call of large images.

h2load makes the calls (Debian's nghttp2-client). Usage: python tests/bench/bench_sizes.py
[--seconds 4] [--rounds 3]
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import models
import numpy as np
import processes

from latentd import bundle, codec
from latentd.models import loading
from latentd.pb import vae_pb2 as pb
from latentd.runtime import profiling
from latentd.runtime.engine import SessionFactory
from latentd.runtime.provider import Provider

SERVICE = "/vae.v1.VaeService/"
SIZES = ((64, 64), (96, 160), (128, 128), (256, 256))
LARGE, COUNT = (256, 256), 64


class Load:
    """h2load with one request again and again. `how`: its flags for duration and concurrency."""

    def __init__(self, port: int, method: str, message: bytes, *how: str) -> None:
        with tempfile.NamedTemporaryFile(delete=False) as file:
            file.write(b"\0" + len(message).to_bytes(4, "big") + message)
        self._file = Path(file.name)
        self._process = subprocess.Popen(
            [
                *("h2load", "-t", "1", "-d", str(self._file), *how, "-w", "24", "-W", "24"),
                *("-H", "content-type: application/grpc", "-H", "te: trailers"),
                f"http://127.0.0.1:{port}{SERVICE}{method}",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )

    def rate(self) -> float:
        """Calls a second; waits for the end. Raises RuntimeError if h2load counted none."""
        output, _ = self._process.communicate()
        self._file.unlink()
        found = re.search(r"finished in [^,]*, ([\d.]+) req/s", output)
        if not found or not float(found[1]):
            raise RuntimeError(output)
        return float(found[1])


def reconstruct(size: tuple[int, int]) -> bytes:
    """A request with one image."""
    x = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    return bytes(pb.ReconstructRequest(x=codec.to_rows(x)).SerializeToString())


def mixed(port: int, seconds: float) -> tuple[dict[tuple[int, int], float], float]:
    """Calls/s of each size alone, and the share of the server's capacity that all at once reach:
    the sum of each size's calls/s by its rate alone. 1.0 is the harmonic mean of their rates."""
    how = ("-D", f"{seconds:g}", "--warm-up-time", "1", "-c", "2", "-m", "8")

    def load(size: tuple[int, int]) -> Load:
        return Load(port, "Reconstruct", reconstruct(size), *how)

    alone = {size: load(size).rate() for size in SIZES}
    together = {size: load(size) for size in SIZES}
    return alone, sum(load.rate() / alone[size] for size, load in together.items())


def engine_cpu(path: Path) -> float:
    """CPU seconds that the decoder takes for a large image in a plain loop, at its best batch."""
    loaded = bundle.load(path)
    _, signature = loading.signatures(loaded.manifest)
    graph = SessionFactory(Provider("cpu")).load(loaded.files[bundle.DECODER], signature, threads=1)
    shapes = loaded.manifest.at(dict(zip("hw", LARGE, strict=True)))

    def run(rows: int) -> object:
        return graph.run(np.zeros((rows, *shapes.z), np.float32), ["x"])

    rows = profiling.choose_batch_size(profiling.measure(run, shapes.x.nbytes, 0.05), 0.05)
    z = np.random.default_rng(0).normal(size=(rows, *shapes.z)).astype(np.float32)
    began, images = time.process_time(), 0
    while time.process_time() - began < 1.0:
        graph.run(z, ["x"])
        images += rows
    return (time.process_time() - began) / images


def large_call_cpu(server: processes.Process, calls: int) -> float:
    """CPU seconds of the server for an image, in calls of COUNT large images one after another."""
    request = pb.SampleRequest(count=COUNT, seed=7, sizes=dict(zip("hw", LARGE, strict=True)))
    how = ("-n", str(calls), "-c", "1", "-m", "1")
    before = server.cpu_seconds()
    Load(server.port, "Sample", request.SerializeToString(), *how).rate()
    return (server.cpu_seconds() - before) / (calls * COUNT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if not shutil.which("h2load"):
        sys.exit("h2load is not here: install Debian's nghttp2-client.")
    with tempfile.TemporaryDirectory() as folder:
        path = models.publish_spatial(Path(folder))
        with processes.server(Path(folder)) as server:
            large_call_cpu(server, 1)
            shares, costs = [], []
            for number in range(args.rounds):
                alone, share = mixed(server.port, args.seconds)
                rates = ", ".join(f"{h}x{w} {rate:,.0f}" for (h, w), rate in alone.items())
                engine, served = engine_cpu(path), large_call_cpu(server, 4)
                shares.append(share)
                costs.append(served / engine)
                print(
                    f"round {number + 1}: alone, calls/s: {rates}; mixed {share:.2f}x; {COUNT} "
                    f"images of {LARGE[0]}x{LARGE[1]}: {served * 1e3:.2f} ms an image, the "
                    f"decoder in a loop {engine * 1e3:.2f} ms",
                    flush=True,
                )
            print(f"mixed sizes, times each alone: {statistics.median(shares):.2f}x (>= 0.9)")
            print(f"CPU of {COUNT} large images, times a loop's: {statistics.median(costs):.2f}x")


if __name__ == "__main__":
    main()
