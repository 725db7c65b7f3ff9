"""Ray Data as the executor: a real Ray on this machine gives the same bytes as processes."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.jobs.conftest import Jobs
from tests.support.spatial_bundle import blocks, publish_spatial

pytest.importorskip("ray", reason="pip install 'latentd[ray]'")

pytestmark = pytest.mark.slow  # starting Ray takes longer than the job

FLAGS = ("--executor", "ray", "--processes", 2)


def test_ray_writes_the_same_bytes(jobs, start_job, npy, tmp_path):
    assert jobs.run(npy, tmp_path / "whole") == 0
    job = start_job(npy, tmp_path / "out", *FLAGS)
    said, errors = job.communicate()
    assert job.returncode == 0, errors
    assert "100 of 100 rows in 5 shards" in said
    assert jobs.content(tmp_path / "out") == jobs.content(tmp_path / "whole")


def test_ray_runs_rows_of_several_sizes(start_job, tmp_path):
    jobs = Jobs(publish_spatial(tmp_path / "bundles"))
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(60):
        [row] = blocks(1, 16 + 8 * (i % 3), 32, seed=i)
        Image.fromarray(row).save(folder / f"{i:02}.png")
    for name, flags in {"whole": (), "out": FLAGS}.items():
        job = start_job(folder, tmp_path / name, "--encode", "draw", *flags, jobs=jobs)
        _, errors = job.communicate()
        assert job.returncode == 0, errors
    assert jobs.content(tmp_path / "out") == jobs.content(tmp_path / "whole")


def test_ray_resumes_a_job_of_processes(jobs, start_job, npy, tmp_path):
    assert jobs.run(npy, tmp_path / "whole") == 0
    assert jobs.run(npy, tmp_path / "out", "--shard-index", 0, "--shard-count", 2) == 0
    before = {p.name: p.stat().st_ino for p in (tmp_path / "out" / "shards").iterdir()}
    job = start_job(npy, tmp_path / "out", *FLAGS)
    _, errors = job.communicate()
    assert job.returncode == 0, errors
    after = {p.name: p.stat().st_ino for p in (tmp_path / "out" / "shards").iterdir()}
    assert before.items() < after.items()
    assert jobs.content(tmp_path / "out") == jobs.content(tmp_path / "whole")


def test_failure_in_an_actor_is_reported(jobs, start_job, npy, tmp_path):
    output = tmp_path / "out"
    assert jobs.run(npy, output, "--shard-index", 0, "--shard-count", 2) == 0
    data = npy.read_bytes()
    npy.write_bytes(data[:-100])  # the same header, 100 bytes short
    job = start_job(npy, tmp_path / "short", *FLAGS)
    _, errors = job.communicate()
    assert job.returncode == 65, errors
    assert "declares 100 rows but ends before" in errors
