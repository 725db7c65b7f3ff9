"""Jobs through a server: the same rows as in process, and retries as the server asks."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trustme
from PIL import Image

from latentd.__main__ import main
from latentd.client import Client
from latentd.columns import Column
from latentd.errors import Overloaded
from tests.support.table_bundle import publish_table

FLOATS = ("reconstruction_error", "kl", "elbo", "mean", "log_var")


@pytest.fixture(scope="module")
def target(toy_bundles, module_servers) -> str:
    return module_servers(toy_bundles).target


def test_server_gives_the_same_rows_as_its_bundle(jobs, npy, tmp_path, target):
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


def test_local_job_resumes_through_a_server(jobs, npy, tmp_path, target):
    flags = ("--shard-index", 0, "--shard-count", 2)
    assert jobs.run(npy, tmp_path / "out", *flags) == 0
    assert jobs.run(npy, tmp_path / "out", "--server", target, "--processes", 2) == 0
    assert jobs.table(tmp_path / "out")["row"].to_pylist() == list(range(100))


def test_bad_rows_are_not_sent(jobs, tmp_path, target):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abcdefghij":
        (folder / f"{name}.png").write_bytes(b"no image")
    assert jobs.run(folder, tmp_path / "out", "--server", target) == 0
    assert set(jobs.quarantine(tmp_path / "out")) == {f"{name}.png" for name in "abcdefghij"}
    assert jobs.table(tmp_path / "out").num_rows == 0


def test_job_respects_the_servers_row_limit(jobs, npy, tmp_path, toy_bundles, start_server):
    server = start_server(toy_bundles, max_rows=8)
    assert jobs.run(npy, tmp_path / "out", "--server", server.target) == 0
    labels = {"method": "StreamReconstruct", "model": "toy", "code": "OK"}
    assert server.metric("latentd_requests_total", **labels) >= 5
    assert jobs.run(npy, tmp_path / "b", "--server", server.target, "--batch-rows", 9) == 78


def test_batches_of_a_wide_table_fit_into_the_servers_messages(jobs, tmp_path, start_server):
    levels = tuple(f"{number:03}" for number in range(255))
    columns = tuple(Column(f"c{place}", levels) for place in range(10))  # 10 KiB of params a row
    publish_table(tmp_path / "wide", "wide", columns, np.zeros((1, 10), np.float32))
    np.save(tmp_path / "x.npy", np.zeros((128, 10), np.float32))
    server = start_server(tmp_path / "wide", max_message_mib=1)
    flags = ("--server", server.target, "--batch-rows", 128, "--shard-rows", 128)
    assert jobs.run(tmp_path / "x.npy", tmp_path / "out", *flags, "--contributions") == 0
    assert jobs.table(tmp_path / "out")["row"].to_pylist() == list(range(128))


def test_draws_equal_those_of_the_bundle(jobs, npy, tmp_path, target):
    flags = ("--draw", "--seed", 7, "--reconstruction", "raw")
    assert jobs.run(npy, tmp_path / "here", *flags) == 0
    assert jobs.run(npy, tmp_path / "there", *flags, "--server", target) == 0
    here, there = jobs.table(tmp_path / "here"), jobs.table(tmp_path / "there")
    np.testing.assert_allclose(here["elbo"].to_numpy(), there["elbo"].to_numpy(), rtol=1e-5)
    a, b = (
        np.frombuffer(b"".join(table["reconstruction"].to_pylist()), np.uint8).astype(int)
        for table in (here, there)
    )
    assert np.abs(a - b).max() <= 1
    here, there = (tmp_path / name / "sheet.html" for name in ("here", "there"))
    assert captions(here) == captions(there)


def captions(sheet: Path) -> list[str]:
    """The row and the error, to a tenth of a nat, of each figure."""
    return re.findall(r"<figcaption>(\d+: [\d.-]+)", sheet.read_text())


def test_bad_rows_do_not_change_the_draws_of_others(jobs, x, tmp_path, target):
    folder = tmp_path / "in"
    folder.mkdir()
    for i, row in enumerate(x[:40]):
        Image.fromarray(row).save(folder / f"{i:02d}.png")
    for i in (0, 3, 17, 39):
        (folder / f"{i:02d}.png").write_bytes(b"no image")
    flags = ("--draw", "--seed", 7)
    assert jobs.run(folder, tmp_path / "here", *flags) == 0
    assert jobs.run(folder, tmp_path / "there", *flags, "--server", target) == 0
    here, there = jobs.table(tmp_path / "here"), jobs.table(tmp_path / "there")
    assert here["row"].to_pylist() == there["row"].to_pylist()
    assert len(here) == 36
    np.testing.assert_allclose(here["elbo"].to_numpy(), there["elbo"].to_numpy(), rtol=1e-5)
    assert jobs.quarantine(tmp_path / "here") == jobs.quarantine(tmp_path / "there")


def test_tls_and_token(jobs, npy, tmp_path, toy_bundles, start_server, capsys):
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.private_key_pem.write_to_path(tmp_path / "tls.key")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    assert main(["token", "jobs"]) == 0
    said = capsys.readouterr()
    (tmp_path / "token").write_text(said.out)
    (tmp_path / "tokens").write_text(said.err)
    server = start_server(
        toy_bundles,
        tls_cert=tmp_path / "tls.crt",
        tls_key=tmp_path / "tls.key",
        tokens=tmp_path / "tokens",
    )
    tls = ("--server", server.target, "--tls-ca", tmp_path / "ca.crt")
    flags = (*tls, "--token-file", tmp_path / "token")
    assert jobs.run(npy, tmp_path / "out", *flags) == 0
    assert jobs.table(tmp_path / "out")["row"].to_pylist() == list(range(100))
    assert jobs.run(npy, tmp_path / "no", *tls) == 69
    assert "token" in capsys.readouterr().err
    assert jobs.run(npy, tmp_path / "no", "--server", server.target, *tls[2:3], "gone") == 78


@contextlib.contextmanager
def overload(target: str, callers: int = 3) -> Iterator[None]:
    """Clients that keep the decoder's queue over its limit."""
    over = threading.Event()

    def call() -> None:
        with Client(target, attempts=1, timeout=None) as client:
            while not over.is_set():
                with contextlib.suppress(Overloaded):
                    client.sample(2000)
                over.wait(0.01)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.mark.slow  # it waits as long as the server asks
def test_overloaded_server_is_retried(jobs, start_job, npy, tmp_path, toy_bundles, start_server):
    server = start_server(toy_bundles, max_batch_rows=1, queue_rows=16)
    there = ("--server", server.target)
    assert jobs.run(npy, tmp_path / "calm", *there) == 0
    rejected = {"method": "StreamReconstruct", "model": "", "code": "RESOURCE_EXHAUSTED"}
    with overload(server.target):
        job = start_job(npy, tmp_path / "out", *there)
        # More than the four attempts of a client that is not in the background.
        while server.metric("latentd_requests_total", **rejected) < 6:
            assert job.poll() is None, job.communicate()
    _, said = job.communicate()
    assert job.returncode == 0, said
    assert jobs.content(tmp_path / "out") == jobs.content(tmp_path / "calm")


def test_missing_server_is_reported(jobs, npy, tmp_path, capsys):
    assert jobs.run(npy, tmp_path / "out", "--server", "127.0.0.1:1") == 69
    assert "127.0.0.1:1" in capsys.readouterr().err
