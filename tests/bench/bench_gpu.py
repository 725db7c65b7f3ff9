"""What the engine, the server and the trainer make of a GPU, beside PyTorch on the same card.

Builds every net, bundle and server it needs, measures what is compared in turns, and prints one
table, which it also writes as Markdown with the card's name, driver and versions. With --device cpu
everything runs on the CPU provider: its figures mean nothing, but it shows that the script works.
Usage: python tests/bench/bench_gpu.py [--device cuda] [--seconds 1] [--rounds 5]
[--precision float32] [--out tests/bench/GPU.md]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import processes
import torch  # before any session: ONNX Runtime finds the CUDA libraries that PyTorch has loaded
import uvloop
from bench_training import Textbook, noise, settings
from gpu_nets import LARGE, SMALL, Net, latents, model, publish
from loadgen import closed_loop, connect

from serving import bundle
from serving.models import loading
from serving.pb import vae_pb2 as pb
from serving.runtime.engine import Engine, Graph
from serving.runtime.provider import Provider
from training.model import render
from training.run import Run

SAMPLE = "/vae.v1.VaeService/Sample"


@dataclass
class Row:
    """One line of the table."""

    work: str
    ratio: float
    reach: float | None  # at least
    detail: str

    @property
    def verdict(self) -> str:
        return "" if self.reach is None else ("met" if self.ratio >= self.reach else "**missed**")


class Bench:
    """What all measurements share."""

    def __init__(self, args: argparse.Namespace, root: Path) -> None:
        self.device, self.seconds, self.rounds = args.device, args.seconds, args.rounds
        self.precision, self.workers, self.root = args.precision, args.workers, root
        self.table: list[Row] = []

    def say(self, work: str, ratio: float, reach: float | None, detail: str) -> None:
        row = Row(work, ratio, reach, detail)
        self.table.append(row)
        bound = "" if reach is None else f">= {reach:g}"
        print(f"{work:58} {ratio:6.2f} {bound:8} {row.verdict:10} {detail}", flush=True)

    def graph(self, net: Net, cuda_graphs: bool) -> Graph:
        loaded = bundle.load(self.path(net))
        _, takes_z = loading.signatures(loaded.manifest)
        engine = Engine(Provider(self.device), cuda_graphs)
        return engine.load(loaded.files[bundle.DECODER], takes_z, threads=1)

    def path(self, net: Net) -> Path:
        folder = self.root / net.name
        made = folder / net.name / "1"
        return made if made.exists() else publish(net, folder, self.precision)

    def rates(self, ways: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Calls a second of each way, round by round, in turns; each is warmed first."""
        for run in ways.values():
            for _ in range(5):
                run()
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(self.rounds):
            for name, run in ways.items():
                began, calls = time.perf_counter(), 0
                while time.perf_counter() - began < self.seconds:
                    run()
                    calls += 1
                found[name].append(calls / (time.perf_counter() - began))
        return found


def ratio(measured: list[float], reference: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(measured, reference, strict=True))


def engine_alone(b: Bench, net: Net) -> None:
    """Latents in host memory to images in host memory, beside PyTorch's."""
    eager, graph = model(net).to(b.device), b.graph(net, cuda_graphs=True)
    compiled = torch.compile(model(net).to(b.device).decode, mode="reduce-overhead")

    def by_torch(decode: Callable[..., torch.Tensor], z: torch.Tensor) -> object:
        with torch.inference_mode():
            return render(eager, decode(z.to(b.device))).cpu().numpy()

    for rows in (64, 256):
        z = latents(rows, net)
        array = z.numpy()
        found = b.rates(
            {
                "engine": lambda array=array: graph.run(array, ["x"]),
                "eager": lambda z=z: by_torch(eager.decode, z),
                "compiled": lambda z=z: by_torch(compiled, z),
            }
        )
        rate = statistics.median(found["engine"]) * rows
        for way, reach in (("eager", 3.0), ("compiled", 1.2)):
            if net is not SMALL:
                reach = 1.0 if way == "compiled" else None
            detail = f"{rate:.0f} and {statistics.median(found[way]) * rows:.0f} images/s"
            work = f"{net.name}, engine, {rows} rows / PyTorch {way}"
            b.say(work, ratio(found["engine"], found[way]), reach, detail)


def cuda_graphs(b: Bench, net: Net) -> None:
    """A replayed graph beside session.run as most people call it."""
    replayed, loaded = b.graph(net, cuda_graphs=True), bundle.load(b.path(net))
    options = Provider(b.device).options(cuda_graph=False)
    plain = onnxruntime.InferenceSession(loaded.files[bundle.DECODER], providers=options)
    for rows in (1, 4, 16):
        z = latents(rows, net).numpy()
        found = b.rates(
            {
                "replayed": lambda z=z: replayed.run(z, ["x"]),
                "plain": lambda z=z: plain.run(["x"], {"z": z}),
            }
        )
        detail = f"{1e6 / statistics.median(found['replayed']):.0f} and " + (
            f"{1e6 / statistics.median(found['plain']):.0f} us"
        )
        work = f"{net.name}, {rows} rows, CUDA graph / plain session.run"
        reach = 2.0 if net is SMALL else None
        b.say(work, ratio(found["replayed"], found["plain"]), reach, detail)


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


def training(b: Bench) -> None:
    """A pass over 60,000 rows of MNIST's shape, gated net, beside the textbook's loop. On a GPU
    --compile replays its steps from CUDA graphs."""
    rows = 60_000 if b.device == "cuda" else 2_560
    dataset = noise(rows)
    theirs = Textbook(settings("gated"), dataset, torch.device(b.device))
    ours = {
        f"batch {size}": Run(
            settings("gated", precision="bfloat16", batch_size=size, compile=b.device == "cuda"),
            dataset,
            torch.device(b.device),
        )
        for size in (128, 1024)
    }
    passes: dict[str, Callable[[], object]] = {"textbook": theirs.epoch}
    passes |= {way: run.epoch for way, run in ours.items()}
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for turn in range(8):
        for name, run in passes.items():
            began = time.perf_counter()
            run()
            if turn > 3:  # the first compiles, the fourth records the last and smaller batch's step
                seconds[name].append(time.perf_counter() - began)
    for way in ours:
        detail = " and ".join(
            f"{statistics.median(seconds[name]):.2f} s" for name in (way, "textbook")
        )
        work = f"training, gated, {way}: epochs/s / textbook's at 128"
        b.say(work, ratio(seconds["textbook"], seconds[way]), 20.0, f"{detail} a pass")


def about(device: str) -> str:
    """The card, its driver and the versions that were measured."""
    versions = f"PyTorch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}"
    if device == "cpu":
        return f"CPU provider, {versions}: a rehearsal of the script, no measurement."
    driver = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    card = subprocess.run(driver, capture_output=True, text=True, check=True).stdout.strip()
    return f"{card}, CUDA {torch.version.cuda}, {versions}."


def report(table: list[Row], head: str) -> str:
    lines = [
        "# On a GPU",
        "",
        "Written by `make bench-gpu`; ratios within one run, medians over its rounds.",
        "",
        head,
        "",
        "| work | measured | to reach | | |",
        "|---|---|---|---|---|",
        *(
            f"| {row.work} | {row.ratio:.2f} | "
            f"{'' if row.reach is None else f'{row.reach:g}'} | {row.verdict} | {row.detail} |"
            for row in table
        ),
    ]
    return "\n".join(lines) + "\n"


async def measure(b: Bench, nets: tuple[Net, ...]) -> None:
    for net in nets:
        engine_alone(b, net)
        cuda_graphs(b, net)
        await through_grpc(b, net)
    await one_caller(b, SMALL)
    training(b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--precision", choices=("float32", "float16"), default="float32")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each way in a round (1)")
    parser.add_argument("--rounds", type=int, default=5, help="of each comparison (5)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="(1 2 4)")
    parser.add_argument("--out", type=Path, default=Path("tests/bench/GPU.md"))
    args = parser.parse_args()
    nets = (SMALL, *LARGE) if args.device == "cuda" else (SMALL,)
    head = f"{about(args.device)} Bundles in {args.precision}."
    print(head)
    with ExitStack() as stack:
        bench = Bench(args, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        uvloop.run(measure(bench, nets))
    args.out.write_text(report(bench.table, head))
    print(f"Written to {args.out}.")


if __name__ == "__main__":
    main()
