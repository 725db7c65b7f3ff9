"""Ray Data as the engine: a real Ray on this machine, and the same bytes as without it."""

from __future__ import annotations

import pytest

pytest.importorskip("ray", reason="pip install 'latentd[ray]'")

pytestmark = pytest.mark.slow  # to start a Ray takes longer than all the rest

FLAGS = ("--executor", "ray", "--processes", 2)


def test_ray_gives_the_same_bytes(jobs, npy, tmp_path):
    assert jobs.run(npy, tmp_path / "whole") == 0
    job = jobs.start(npy, tmp_path / "out", *FLAGS)
    said, errors = job.communicate()
    assert job.returncode == 0, errors
    assert "100 of 100 rows in 5 shards" in said
    assert jobs.content(tmp_path / "out") == jobs.content(tmp_path / "whole")


def test_ray_goes_on_where_processes_were(jobs, npy, tmp_path):
    assert jobs.run(npy, tmp_path / "whole") == 0
    assert jobs.run(npy, tmp_path / "out", "--shard-index", 0, "--shard-count", 2) == 0
    before = {p.name: p.stat().st_ino for p in (tmp_path / "out" / "shards").iterdir()}
    job = jobs.start(npy, tmp_path / "out", *FLAGS)
    _, errors = job.communicate()
    assert job.returncode == 0, errors
    after = {p.name: p.stat().st_ino for p in (tmp_path / "out" / "shards").iterdir()}
    assert before.items() < after.items()
    assert jobs.content(tmp_path / "out") == jobs.content(tmp_path / "whole")


def test_what_fails_in_an_actor_is_said_as_anywhere(jobs, npy, tmp_path):
    output = tmp_path / "out"
    assert jobs.run(npy, output, "--shard-index", 0, "--shard-count", 2) == 0
    data = npy.read_bytes()
    npy.write_bytes(data[:-100])  # the same array, it says, and 100 bytes short
    job = jobs.start(npy, tmp_path / "short", *FLAGS)
    _, errors = job.communicate()
    assert job.returncode == 65, errors
    assert "promises 100 rows and ends before" in errors
