"""How fast the engine, the server and the trainer are on a GPU, compared with PyTorch on the card.

Builds every net, bundle and server, measures in turns what it compares, and prints one table. It
also writes the table as Markdown with the card's name, driver and versions. With --device cpu all
runs on the CPU provider: the figures then mean nothing, but show that the script works.
Usage: python tests/bench/bench_gpu.py [--device cuda] [--seconds 1] [--rounds 5]
[--precision float32] [--out build/GPU.md]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import onnxruntime
import torch  # before any session: ONNX Runtime finds the CUDA libraries that PyTorch has loaded
import uvloop
from bench_training import Textbook, noise, settings
from gpu_nets import LARGE, SMALL, Net, latents, model
from gpu_served import one_caller, through_grpc
from gpu_table import Bench, ratio, report

from latentd import bundle
from latentd.runtime.provider import Provider
from latentd.training.model import to_data
from latentd.training.trainer import Trainer


def engine_alone(b: Bench, net: Net) -> None:
    """From latents in host memory to images in host memory, compared with PyTorch."""
    eager, graph = model(net).to(b.device), b.graph(net, cuda_graphs=True)
    compiled = torch.compile(model(net).to(b.device).decode, mode="reduce-overhead")

    def by_torch(decode: Callable[..., torch.Tensor], z: torch.Tensor) -> object:
        with torch.inference_mode():
            return to_data(eager, decode(z.to(b.device))).cpu().numpy()

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
            b.report_row(work, ratio(found["engine"], found[way]), reach, detail)


def cuda_graphs(b: Bench, net: Net) -> None:
    """A replayed CUDA graph compared with a plain session.run."""
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
        b.report_row(work, ratio(found["replayed"], found["plain"]), reach, detail)


def training(b: Bench) -> None:
    """An epoch of 60,000 rows of MNIST's shape, gated net, compared with the textbook's loop.

    On a GPU --compile replays the steps from CUDA graphs.
    """
    rows = 60_000 if b.device == "cuda" else 2_560
    dataset = noise(rows)
    theirs = Textbook(settings("gated"), dataset, torch.device(b.device))
    ours = {
        f"batch {size}": Trainer(
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
        b.report_row(work, ratio(seconds["textbook"], seconds[way]), 20.0, f"{detail} a pass")


def about(device: str) -> str:
    """The card, its driver and the versions of what is measured."""
    versions = f"PyTorch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}"
    if device == "cpu":
        return f"CPU provider, {versions}: a trial of the script, not a measurement."
    driver = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    card = subprocess.run(driver, capture_output=True, text=True, check=True).stdout.strip()
    return f"{card}, CUDA {torch.version.cuda}, {versions}."


def checked(device: str) -> str:
    """Run the tests that need a GPU; returns their summary."""
    if device == "cpu":
        return ""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--timeout", "300"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    summary = (run.stdout.strip() or run.stderr.strip()).splitlines() or ["nothing"]
    if run.returncode:
        print(run.stdout, run.stderr, sep="\n")
    return f"Tests for a GPU: {summary[-1].strip('= ')}."


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
    parser.add_argument("--out", type=Path, default=Path("build/GPU.md"))
    args = parser.parse_args()
    nets = (SMALL, *LARGE) if args.device == "cuda" else (SMALL,)
    torch.backends.cudnn.allow_tf32 = False  # as the server: products of float32 are float32
    head = f"{about(args.device)} Bundles in {args.precision}. {checked(args.device)}"
    print(head)
    with ExitStack() as stack:
        bench = Bench(args, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        uvloop.run(measure(bench, nets))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(report(bench.table, head))
    print(f"Written to {args.out}.")


if __name__ == "__main__":
    main()
