"""Commands whose network breaks: they wait, say so, and write the same files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.network.conftest import ROOT, Site
from tests.support.processes import StartProcess, wait_until

ROWS = 100_000
SOME = 200_000  # bytes of rows that have arrived: the command is in the middle of its stream


@pytest.fixture
def undisturbed(site: Site):
    """Run a command to its end."""

    def run(*words: object) -> None:
        command = [sys.executable, "-m", "latentd", *map(str, words)]
        subprocess.run(command, cwd=ROOT, check=True)

    return run


@pytest.fixture
def disturbed(site: Site, start_process: StartProcess):
    """Run a command whose link is cut for 10 s in the middle; returns what it says on stderr."""

    def run(*words: object) -> str:
        site.link.rate = 1e6  # so that it has a middle
        before = site.link.down.delivered
        process = start_process(
            [sys.executable, "-m", "latentd", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        wait_until(lambda: site.link.down.delivered > before + SOME, process)
        with site.link.cut_for(10):
            _, said = process.communicate()
        assert process.returncode == 0, said
        return said

    return run


def test_client_stream_writes_every_row(site, undisturbed, disturbed, tmp_path):
    command = ("client", "stream", "--server", site.target, "--count", ROWS, "--seed", 7, "--out")
    undisturbed(*command, tmp_path / "whole.npy")
    said = disturbed(*command, tmp_path / "cut.npy")
    assert f"latentd: {site.target} is unavailable" in said
    assert "waiting for it" in said
    assert f"latentd: {site.target} answers again" in said
    assert np.load(tmp_path / "whole.npy").shape == (ROWS, 4, 4)
    assert (tmp_path / "cut.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


@pytest.mark.parametrize("processes", [1, 2])
def test_job_writes_every_row_once(site, undisturbed, disturbed, tmp_path, processes):
    x = np.random.default_rng(7).integers(0, 256, (ROWS // 4, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    job = ("batch", "--input", tmp_path / "x.npy", "--server", site.target, "--shard-rows", 5000)
    job = (*job, "--batch-rows", 64, "--processes", processes, "--niceness", 0)
    undisturbed(*job, "--output", tmp_path / "whole")
    said = disturbed(*job, "--output", tmp_path / "cut")
    assert f"{site.target} is unavailable" in said
    assert "waiting for it" in said
    whole, cut = (table(tmp_path / name) for name in ("whole", "cut"))
    assert cut["row"].to_pylist() == list(range(len(x)))
    # A server forms its own batches: the last bits of scores may differ.
    for name in ("reconstruction_error", "kl", "elbo"):
        np.testing.assert_allclose(cut[name].to_numpy(), whole[name].to_numpy(), rtol=1e-6)


def table(folder: Path):
    return pq.read_table(sorted((folder / "shards").glob("*.parquet"))).sort_by("row")
