"""Jobs through a server: the same rows as in process, and its refusals are obeyed."""

from __future__ import annotations

import numpy as np
import pytest

FLOATS = ("reconstruction_error", "kl", "elbo", "mean", "log_var")


@pytest.fixture(scope="module")
def target(toy_bundles, module_servers) -> str:
    return module_servers(toy_bundles).target


def test_a_server_gives_the_rows_of_its_bundle(jobs, npy, tmp_path, target):
    assert jobs.run(npy, tmp_path / "here", "--reconstruction", "png") == 0
    flags = ("--reconstruction", "png", "--server", target)
    assert jobs.run(npy, tmp_path / "there", *flags) == 0
    here, there = jobs.table(tmp_path / "here"), jobs.table(tmp_path / "there")
    assert here.schema.equals(there.schema)
    for name in FLOATS:
        a, b = (np.stack(table[name].to_numpy()) for table in (here, there))
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert here["reconstruction"].to_pylist() == there["reconstruction"].to_pylist()
    assert (tmp_path / "there" / "sheet.html").exists()


def test_a_job_begun_here_may_go_on_there(jobs, npy, tmp_path, target):
    flags = ("--shard-index", 0, "--shard-count", 2)
    assert jobs.run(npy, tmp_path / "out", *flags) == 0
    assert jobs.run(npy, tmp_path / "out", "--server", target, "--processes", 2) == 0
    assert jobs.table(tmp_path / "out")["row"].to_pylist() == list(range(100))


def test_bad_rows_never_reach_the_server(jobs, tmp_path, target):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abcdefghij":
        (folder / f"{name}.png").write_bytes(b"no image")
    assert jobs.run(folder, tmp_path / "out", "--server", target) == 0
    assert set(jobs.quarantine(tmp_path / "out")) == {f"{name}.png" for name in "abcdefghij"}
    assert jobs.table(tmp_path / "out").num_rows == 0


def test_the_server_works_for_it_in_the_background(jobs, npy, tmp_path, toy_bundles, start_server):
    server = start_server(toy_bundles, max_rows=8)
    assert jobs.run(npy, tmp_path / "out", "--server", server.target) == 0
    labels = {"method": "StreamReconstruct", "model": "toy", "code": "OK"}
    assert server.metric("latentd_requests_total", **labels) >= 5
    assert jobs.run(npy, tmp_path / "b", "--server", server.target, "--batch-rows", 9) == 78


def test_no_server_is_said(jobs, npy, tmp_path, capsys):
    assert jobs.run(npy, tmp_path / "out", "--server", "127.0.0.1:1") == 69
    assert "127.0.0.1:1" in capsys.readouterr().err
