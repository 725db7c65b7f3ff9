"""What a call costs by each protocol: the same work by vae.v1 and by ModelInfer.

h2load (Debian's nghttp2-client) makes the calls, on one server of one worker, in turns. Usage:
python tests/bench/bench_faces.py [--seconds 2] [--rounds 3] [--models mlp conv]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import h2load
import models
import numpy as np
import processes
from h2load import Callers
from processes import Process

from latentd import codec
from latentd.pb import open_inference_pb2 as oi
from latentd.pb import vae_pb2 as pb

INFER = "/inference.GRPCInferenceService/ModelInfer"
MANY = 64
FEW_CALLERS, MANY_CALLERS = Callers(4, 2), Callers(4, 16)


@dataclass(frozen=True)
class Work:
    """One call by each protocol: its path and message."""

    name: str
    rows: int
    vae: tuple[str, bytes]
    open_inference: tuple[str, bytes]

    @property
    def callers(self) -> Callers:
        return MANY_CALLERS if self.rows == 1 else FEW_CALLERS


def infer(model: str, outputs: list[str], **arrays: np.ndarray) -> tuple[str, bytes]:
    """A request of ModelInfer with raw contents, as Triton's client sends it."""
    names = {"uint8": "UINT8", "uint64": "UINT64"}
    request = oi.ModelInferRequest(model_name=model)
    for name, array in arrays.items():
        request.inputs.add(name=name, datatype=names[str(array.dtype)], shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    for name in outputs:
        request.outputs.add(name=name)
    return INFER, request.SerializeToString()


def sample(rows: int) -> Work:
    request = pb.SampleRequest(count=rows, seed=7)
    seed, index = np.full((rows, 1), 7, np.uint64), np.arange(rows, dtype=np.uint64)[:, None]
    return Work(
        f"Sample {rows}",
        rows,
        (h2load.SERVICE + "Sample", request.SerializeToString()),
        infer(":sample", ["x"], seed=seed, index=index),
    )


def reconstruct(rows: int) -> Work:
    x = np.random.default_rng(0).integers(0, 256, (rows, *models.SHAPE), np.uint8)
    request = pb.ReconstructRequest(x=codec.to_rows(x))
    return Work(
        f"Reconstruct {rows}",
        rows,
        (h2load.SERVICE + "Reconstruct", request.SerializeToString()),
        infer(":reconstruct", ["x"], x=x),
    )


WORKS = (sample(1), sample(MANY), reconstruct(1), reconstruct(MANY))


def cpu_and_rate(server: Process, call: tuple[str, bytes], callers: Callers, seconds: float):
    """The server's milliseconds of CPU a call, and calls a second."""
    calls = str(int(seconds * 1000 if callers is FEW_CALLERS else seconds * 6000))
    length = ("-n", calls)
    load = h2load.grpc(server.port, *call, callers, length)
    before = server.cpu_seconds()
    rate = load.result().rate
    return (server.cpu_seconds() - before) / int(calls) * 1e3, rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run, about (2)")
    parser.add_argument("--rounds", type=int, default=3, help="of each comparison (3)")
    parser.add_argument("--models", nargs="+", default=list(models.MODELS), choices=models.MODELS)
    args = parser.parse_args()
    h2load.require()
    print(f"{len(os.sched_getaffinity(0))} CPUs, {args.rounds} rounds in turns; medians")
    for name in args.models:
        with tempfile.TemporaryDirectory() as root:
            models.publish(Path(root), name)
            with processes.server(Path(root)) as server:
                for work in WORKS:
                    rounds = [
                        (
                            cpu_and_rate(server, work.vae, work.callers, args.seconds),
                            cpu_and_rate(server, work.open_inference, work.callers, args.seconds),
                        )
                        for _ in range(args.rounds)
                    ]
                    vae, infer = (statistics.median(r[face][0] for r in rounds) for face in (0, 1))
                    ratio = statistics.median(b[0] / a[0] for a, b in rounds)
                    rate = statistics.median(b[1] / a[1] for a, b in rounds)
                    print(
                        f"{name:5} {work.name:15} vae.v1 {vae:.3f} ms of CPU a call, ModelInfer "
                        f"{infer:.3f}: {ratio:.2f} times; calls/s {rate:.2f} times",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
