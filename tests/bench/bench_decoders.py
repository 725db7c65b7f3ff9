"""What each way to upsample in a decoder costs on ONNX Runtime's CPU provider.

Three ways, untrained, with widths chosen for an equal number of parameters: transposed convolution
(4x4, stride 2), nearest-neighbor upsampling before a 3x3 convolution, and a 3x3 sub-pixel
convolution.
The three are timed in turns, round by round; the table shows medians. Usage:
python tests/bench/bench_decoders.py [--rounds 7] [--threads 1] [--out bench/decoders.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import models
import numpy as np
import onnxruntime as ort

SECONDS = 0.03  # of one turn, at least
BATCHES = tuple(1 << n for n in range(9))


def transposed(g: models.Graph, x: str, inputs: int, outputs: int) -> str:
    return g.conv_transpose(x, inputs, outputs)


def upsampled(g: models.Graph, x: str, inputs: int, outputs: int) -> str:
    return g.conv(g.double(x), inputs, outputs)


def sub_pixel(g: models.Graph, x: str, inputs: int, outputs: int) -> str:
    return g.node("DepthToSpace", g.conv(x, inputs, 4 * outputs), blocksize=2, mode="CRD")


WAYS: dict[str, Callable[[models.Graph, str, int, int], str]] = {
    "transposed": transposed,
    "upsampled": upsampled,
    "sub-pixel": sub_pixel,
}
CHANNELS = {
    28: {"transposed": (64, 32), "upsampled": (72, 38), "sub-pixel": (52, 24)},
    64: {"transposed": (64, 32), "upsampled": (66, 36), "sub-pixel": (58, 30)},
}
"""Output height and width -> channels at a quarter and at half of it."""


def decoder(way: str, size: int) -> tuple[bytes, int]:
    """A graph z -> x of `size` x `size` gray images, and its parameters."""
    coarse, fine = CHANNELS[size][way]
    side = size // 4
    g = models.Graph(0)
    z = g.dense("z", models.LATENT, coarse * side * side)
    h = g.reshape(g.node("Relu", z), coarse, side, side)
    h = g.node("Relu", WAYS[way](g, h, coarse, fine))
    g.node("Sigmoid", WAYS[way](g, h, fine, 1), to="x")
    float32 = models.FLOAT
    graph = g.finish(("z", float32, models.LATENT), ("x", float32, 1, size, size))
    return graph, g.parameters


def seconds_a_row(session: ort.InferenceSession, z: np.ndarray) -> float:
    """The mean over runs for SECONDS."""
    began, runs = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < SECONDS:
        session.run(["x"], {"z": z})
        runs += 1
    return spent / runs / len(z)


def compare(size: int, rounds: int, threads: int) -> list[dict[str, float]]:
    """Print the table of one output size; its lines, with microseconds a row by way."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = {}
    for way in WAYS:
        graph, parameters = decoder(way, size)
        print(f"{size}x{size} {way}: {parameters} parameters")
        sessions[way] = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    print("batch" + "".join(f"{way + ', us':>16}{'':8}" for way in WAYS))
    lines = []
    for batch in BATCHES:
        z = np.random.default_rng(0).normal(size=(batch, models.LATENT)).astype(np.float32)
        turns: dict[str, list[float]] = {way: [] for way in WAYS}
        for session in sessions.values():
            session.run(["x"], {"z": z})  # the first run of a shape allocates
        for _ in range(rounds):
            for way, session in sessions.items():
                turns[way].append(seconds_a_row(session, z) * 1e6)
        line = {way: statistics.median(times) for way, times in turns.items()}
        cells = (f"{us:16.1f} {us / line['sub-pixel']:5.2f}x " for us in line.values())
        print(f"{batch:5}" + "".join(cells))
        lines.append({"size": size, "batch": batch} | line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="turns of each decoder (7)")
    parser.add_argument("--threads", type=int, default=1, help="of one run (1)")
    parser.add_argument("--out", type=Path, default=Path("bench/decoders.json"))
    args = parser.parse_args()
    lines = [line for size in CHANNELS for line in compare(size, args.rounds, args.threads)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(lines, indent=2))
    print(f"Times are per row, each followed by its ratio to sub-pixel. Written to {args.out}.")


if __name__ == "__main__":
    main()
