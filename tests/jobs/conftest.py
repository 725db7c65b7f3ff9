"""Jobs on the toy bundle: run here, or in processes of their own, and read back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.__main__ import main

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
            *("reconstruct", "--input", *sources, *target, "--output", output),
            *("--provider", "cpu", "--processes", 1, "--shard-rows", 24, "--batch-rows", 8),
            *("--max-quarantined", "100%"),  # tests of a few rows, many of them bad
            *("--niceness", 0),  # it could not be taken back from the process of the tests
            *flags,
        )
        return list(map(str, words))

    def run(self, source: object, output: object, *flags: object) -> int:
        """Here; gives the exit status."""
        return main(self.command(source, output, *flags))

    def start(
        self,
        source: object,
        output: object,
        *flags: object,
        prepare: Callable | None = None,
        **streams: int,
    ) -> subprocess.Popen:
        """In a process of its own; `prepare` is called in it first."""
        return subprocess.Popen(
            [sys.executable, "-m", "serving", *self.command(source, output, *flags)],
            **self.surroundings() | streams,
            preexec_fn=prepare,
        )

    @staticmethod
    def wait_for(path: Path, process: subprocess.Popen) -> None:
        """Until the process has made the file."""
        while not path.exists():
            assert process.poll() is None, process.communicate()

    @staticmethod
    def surroundings(**environment: str) -> dict:
        """How processes are started here: in the repository, all that they say captured."""
        return {
            "cwd": ROOT,
            "env": os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }

    @staticmethod
    def content(folder: Path) -> dict[str, bytes]:
        """Every file of an output but those that know when the input was written."""
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


@pytest.fixture(scope="session")
def x() -> np.ndarray:
    """Rows for the toy, each of them different."""
    return np.random.default_rng(0).integers(0, 256, (ROWS, 4, 4), np.uint8)


@pytest.fixture
def npy(tmp_path: Path, x: np.ndarray) -> Path:
    np.save(tmp_path / "x.npy", x)
    return tmp_path / "x.npy"
