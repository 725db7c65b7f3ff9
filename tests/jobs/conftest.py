"""Run jobs on the toy bundle, in this process or their own, and read their output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import helper

from latentd import bundle
from latentd.__main__ import main
from latentd.bundle import DataSpec, LatentFormat, Manifest, RowFormat
from latentd.shapes import Shape
from tests.support.likelihoods import LIKELIHOODS, likelihood_graph, log_likelihood
from tests.support.onnx_graphs import npz, serialized
from tests.support.processes import StartProcess

ROOT = Path(__file__).resolve().parents[2]
ROWS = 100


class Jobs:
    """Runs jobs of several shards, in one process on the CPU unless the flags say otherwise."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle

    def command(self, source: object, output: object, *flags: object) -> list[str]:
        sources = source if isinstance(source, list) else [source]
        target = () if "--server" in flags else ("--bundle", self.bundle)
        words = (
            *("batch", "--input", *sources, *target, "--output", output),
            *("--provider", "cpu", "--processes", 1, "--shard-rows", 24, "--batch-rows", 8),
            *("--max-quarantined", "100%"),  # tests have few rows, many of them bad
            *("--niceness", 0),  # the tests' process could not undo it
            *flags,
        )
        return list(map(str, words))

    def run(self, source: object, output: object, *flags: object) -> int:
        """Run in this process; returns the exit status."""
        return main(self.command(source, output, *flags))

    @staticmethod
    def popen_arguments(**environment: str) -> dict:
        """Arguments of Popen: run in the repository, capture the output."""
        return {
            "cwd": ROOT,
            "env": os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }

    @staticmethod
    def content(folder: Path) -> dict[str, bytes]:
        """Every file of an output except those that depend on the input's times."""
        return {
            str(p.relative_to(folder)): p.read_bytes()
            for p in folder.rglob("*")
            if p.is_file() and p.name not in (".locks", "plan.json")
        }

    @staticmethod
    def table(folder: Path) -> pa.Table:
        """The rows of all shards that have a manifest."""
        manifests = sorted((folder / "shards").glob("_*.json"))
        files = [m.with_name(f"{m.stem[1:]}.parquet") for m in manifests]
        return pa.concat_tables([pq.read_table(file) for file in files])

    @staticmethod
    def quarantine(folder: Path) -> dict[str, str]:
        """Id -> reason."""
        lines = (folder / "quarantine.jsonl").read_text().splitlines()
        return {row["id"]: row["reason"] for row in map(json.loads, lines)}


@pytest.fixture(scope="session")
def jobs(toy_bundles: Path) -> Jobs:
    return Jobs(toy_bundles / "toy" / "1")


@pytest.fixture
def start_job(jobs: Jobs, start_process: StartProcess) -> StartProcess:
    """Run a job of `jobs` in a process of its own, which calls `prepare` first."""

    def start(
        source: object,
        output: object,
        *flags: object,
        jobs: Jobs = jobs,
        prepare: Callable[[], None] | None = None,
        **streams: Any,
    ) -> subprocess.Popen[str]:
        return start_process(
            [sys.executable, "-m", "latentd", *jobs.command(source, output, *flags)],
            **jobs.popen_arguments() | streams,
            preexec_fn=prepare,
        )

    return start


def vector_graphs(width: int, low: float, high: float) -> tuple[bytes, bytes]:
    """An encoder and a decoder of rows of floats: mean = x; params = half of z, scaled to 0 to 1,
    and a log-std of 0; x' = z within the range."""
    constants = {
        "zero": np.float32(0),
        "minus_two": np.float32(-2),
        "low": np.float32(low),
        "twice_span": np.float32(2 * (high - low)),
        "high": np.float32(high),
        "one_by_width": np.array([-1, 1, width], np.int64),
    }
    encoder = [
        helper.make_node("Identity", ["x"], ["mean"]),
        helper.make_node("Mul", ["x", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "minus_two"], ["log_var"]),
    ]
    decoder = [
        helper.make_node("Clip", ["z", "low", "high"], ["x"]),
        helper.make_node("Sub", ["z", "low"], ["above"]),
        helper.make_node("Div", ["above", "twice_span"], ["halves"]),
        helper.make_node("Reshape", ["halves", "one_by_width"], ["means"]),
        helper.make_node("Mul", ["means", "zero"], ["log_std"]),
        helper.make_node("Concat", ["means", "log_std"], ["params"], axis=1),
    ]
    row = ("float32", (width,))
    return (
        serialized(encoder, {"x": row}, {"mean": row, "log_var": row}, constants),
        serialized(decoder, {"z": row}, {"x": row, "params": ("float32", (2, width))}, constants),
    )


class PublishVectors:
    """Publish a model of vectors of floats in a range, as trained on a min-max scaled table."""

    def __call__(
        self, root: Path, likelihood: str = "gaussian", width: int = 3, low: float = 0.0
    ) -> Path:
        x = DataSpec("vector", (width,), "float32", (low, 1.0))
        encoder, decoder = vector_graphs(width, *x.range)
        rows = np.linspace(low, 1, 4 * width, dtype=np.float32).reshape(4, width)
        halves = ((rows - low) / (2 * (1 - low))).astype(np.float32)
        params = np.stack([halves, np.zeros_like(halves)], axis=1)
        graph = likelihood_graph(likelihood, x)
        golden = npz(
            x=rows,
            mean=rows,
            log_var=np.full_like(rows, -2),
            z=rows,
            decoded_x=rows,
            params=params,
            log_likelihood=log_likelihood(graph, rows, params),
        )
        manifest = Manifest(
            model="vectors",
            x=RowFormat.of(x),
            z=LatentFormat(Shape.parse([width])),
            likelihood=LIKELIHOODS[likelihood],
            opset=18,
            preprocessing="none",
            parity={},
        )
        files = {
            bundle.ENCODER: encoder,
            bundle.DECODER: decoder,
            bundle.LIKELIHOOD: graph,
            bundle.GOLDEN: golden,
        }
        return bundle.publish(root, manifest, files)


@pytest.fixture(scope="session")
def publish_vectors() -> PublishVectors:
    return PublishVectors()


@pytest.fixture(scope="session")
def vector_jobs(tmp_path_factory: pytest.TempPathFactory, publish_vectors: PublishVectors) -> Jobs:
    """Jobs through a Gaussian model of three floats in 0 to 1."""
    return Jobs(publish_vectors(tmp_path_factory.mktemp("vectors")))


@pytest.fixture(scope="session")
def x() -> np.ndarray:
    """Rows for the toy, each of them different."""
    return np.random.default_rng(0).integers(0, 256, (ROWS, 4, 4), np.uint8)


@pytest.fixture
def npy(tmp_path: Path, x: np.ndarray) -> Path:
    np.save(tmp_path / "x.npy", x)
    return tmp_path / "x.npy"
