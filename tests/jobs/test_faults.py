"""Kills, full disks, concurrent runs, changed inputs: no row is lost and no row is doubled."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from latentd.jobs.store import Store
from tests.support.processes import wait_until

HERE = Path(__file__).parent


@pytest.mark.slow
def test_job_killed_at_any_step_of_a_commit_resumes(jobs, npy, tmp_path):
    assert jobs.run(npy, tmp_path / "whole", "--shard-rows", 50) == 0
    expected = jobs.content(tmp_path / "whole")
    command = jobs.command(npy, "unused", "--shard-rows", 50)
    at = command.index("--output")
    driver = [sys.executable, str(HERE.parent / "support" / "kill_points.py"), str(tmp_path)]
    done = subprocess.run(
        [*driver, *command[:at], *command[at + 2 :]], **jobs.popen_arguments(), check=True
    )
    kills = [json.loads(line[7:]) for line in done.stdout.splitlines() if "KILLED" in line]
    # Two shards and their manifests, each with a file and its folder to sync, and what a job has
    # of its own: all with a moment before and one after.
    assert len(kills) > 60, done.stderr
    assert {kill["where"].split()[1] for kill in kills} >= {"fsync", "rename"}
    for kill in kills:
        assert (kill["status"], kill["again"]) == (-signal.SIGKILL, 0), kill
        assert kill["torn"] == [], kill
        assert jobs.content(Path(kill["output"])) == expected, kill


def test_killed_worker_is_reported_and_its_shards_are_made_later(jobs, start_job, npy, tmp_path):
    assert jobs.run(npy, tmp_path / "whole") == 0
    output = tmp_path / "out"
    # One shard is locked, so that both workers run until its lock is released.
    store = Store(output)
    with store.locked(1, wait=False):
        job = start_job(npy, output, "--processes", 2)
        wait_until((output / "shards" / "_00003.json").exists, job)
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        workers = [pid for pid in map(int, children) if b"--multiprocessing-fork" in cmdline(pid)]
        for pid in workers:
            if b"resource_tracker" not in cmdline(pid):
                os.kill(pid, signal.SIGKILL)
        _, said = job.communicate()
    store.close()
    assert job.returncode == 70, said
    assert "Worker killed by signal 9" in said
    assert not (output / "_SUCCESS").exists()
    assert jobs.run(npy, output) == 0
    assert jobs.content(output) == jobs.content(tmp_path / "whole")


def has_no_traceback(said: str) -> bool:
    return "Traceback" not in said and "Exception ignored" not in said


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_sigterm_removes_temporary_files(start_job, npy, tmp_path):
    output = tmp_path / "out"
    store = Store(output)
    with store.locked(2, wait=False):
        job = start_job(npy, output)
        wait_until((output / "shards" / "_00004.json").exists, job)
        job.send_signal(signal.SIGTERM)
        _, said = job.communicate()
    store.close()
    assert job.returncode == 143, said
    assert "Rerun the command" in said
    assert not list((output / "shards").glob(".*"))
    assert len(list((output / "shards").glob("_*.json"))) == 4


def test_locked_shard_is_made_by_one_worker(jobs, start_job, npy, tmp_path):
    assert jobs.run(npy, tmp_path / "whole") == 0
    output = tmp_path / "out"
    store = Store(output)
    with store.locked(0, wait=False):
        job = start_job(npy, output)
        wait_until((output / "shards" / "_00004.json").exists, job)  # it skipped the locked shard
        assert not (output / "shards" / "_00000.json").exists()
    _, said = job.communicate()
    store.close()
    assert job.returncode == 0, said
    assert jobs.content(output) == jobs.content(tmp_path / "whole")


def test_same_command_twice_at_once_shares_the_work(jobs, start_job, npy, tmp_path):
    assert jobs.run(npy, tmp_path / "whole") == 0
    both = [start_job(npy, tmp_path / "out") for _ in range(2)]
    for job in both:
        _, said = job.communicate()
        assert job.returncode == 0, said
    assert jobs.content(tmp_path / "out") == jobs.content(tmp_path / "whole")


def test_full_disk_is_reported_and_the_job_resumes(jobs, start_job, npy, tmp_path):
    assert jobs.run(npy, tmp_path / "whole") == 0
    output = tmp_path / "out"

    def limit_file_size() -> None:
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (4000, 4000)
        )  # enough for the plan, too little for a shard

    job = start_job(npy, output, prepare=limit_file_size)
    _, said = job.communicate()
    assert job.returncode == 74, said
    assert "rerun the command" in said
    assert has_no_traceback(said)
    assert list((output / "shards").iterdir()) == []
    assert jobs.run(npy, output) == 0
    assert jobs.content(output) == jobs.content(tmp_path / "whole")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a small disk")
def test_disk_that_fills_up_keeps_committed_shards(jobs, start_job, npy, tmp_path):
    assert jobs.run(npy, tmp_path / "whole") == 0
    output = tmp_path / "out"
    output.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(output)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        (output / "ballast").write_bytes(bytes(24 << 10))
        job = start_job(npy, output)
        _, said = job.communicate()
        assert job.returncode == 74, said
        assert f"No space left on device ({output}/shards/" in said
        assert has_no_traceback(said)
        committed = len(list((output / "shards").glob("_*.json")))
        assert 0 < committed < 5
        (output / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=1m", str(output)], check=True)
        assert jobs.run(npy, output) == 0
        assert jobs.content(output) == jobs.content(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(output)], check=True)


def test_committed_shards_are_not_made_again(jobs, npy, tmp_path):
    output = tmp_path / "out"
    assert jobs.run(npy, output, "--shard-index", 0, "--shard-count", 2) == 0
    before = {p.name: p.stat().st_ino for p in (output / "shards").iterdir()}
    assert len(before) == 6
    assert jobs.run(npy, output) == 0
    after = {p.name: p.stat().st_ino for p in (output / "shards").iterdir()}
    assert before.items() <= after.items()
    assert jobs.run(npy, output) == 0  # all shards are done
    assert after == {p.name: p.stat().st_ino for p in (output / "shards").iterdir()}


def test_shards_deleted_during_the_job_are_reported(jobs, start_job, npy, tmp_path):
    assert jobs.run(npy, tmp_path / "whole") == 0
    output = tmp_path / "out"
    store = Store(output)
    with store.locked(0, wait=False):
        job = start_job(npy, output)
        wait_until((output / "shards" / "_00004.json").exists, job)
        (output / "shards" / "_00002.json").unlink()
        (output / "shards" / "00003.parquet").unlink()
    said, errors = job.communicate()
    store.close()
    assert job.returncode == 74, errors
    assert "2 finished shard(s) are missing" in errors
    assert "00002.parquet" in errors
    assert "others are still running" not in said + errors
    assert not (output / "_SUCCESS").exists()
    assert jobs.run(npy, output) == 0
    assert jobs.content(output) == jobs.content(tmp_path / "whole")


@pytest.mark.parametrize("processes", [1, 2])
def test_moved_output_is_reported(start_job, npy, tmp_path, processes):
    output = tmp_path / "out"
    store = Store(output)
    with store.locked(1, wait=False):
        job = start_job(npy, output, "--processes", processes)
        wait_until((output / "shards" / "_00004.json").exists, job)
        output.rename(tmp_path / "moved")
    _, said = job.communicate()
    store.close()
    assert job.returncode == 74, said
    assert f"is missing: {output}/" in said
    assert has_no_traceback(said)


def test_bug_is_reported_with_its_location(jobs, npy, tmp_path, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise ValueError("unforeseen")

    monkeypatch.setattr("latentd.jobs.worker.concat_results", fail)
    assert jobs.run(npy, tmp_path / "out") == 70
    said = capsys.readouterr().err
    assert "latentd/jobs/worker.py, line" in said
    assert "ValueError: unforeseen" in said


def test_summary_that_cannot_be_printed_is_reported(jobs, start_job, npy, tmp_path):
    with Path("/dev/full").open("wb") as full:
        job = start_job(npy, tmp_path / "full", stdout=full.fileno())
        _, said = job.communicate()
    assert job.returncode == 74, said
    assert "No space left" in said
    assert has_no_traceback(said)
    store = Store(tmp_path / "pipe")
    with store.locked(0, wait=False):
        buffered = jobs.popen_arguments(PYTHONUNBUFFERED="")["env"]
        job = start_job(npy, tmp_path / "pipe", env=buffered)
        assert job.stdout.readline().startswith("--input")
        job.stdout.close()  # the reader closes the pipe before the summary
    said = job.stderr.read()
    job.stderr.close()
    store.close()
    assert job.wait() == 74, said
    assert "Broken pipe" in said
    assert has_no_traceback(said)
    assert (tmp_path / "pipe" / "_SUCCESS").exists()


def test_unwritable_metrics_file_fails_before_the_work(jobs, npy, tmp_path, capsys):
    flags = ("--metrics-file", tmp_path / "gone" / "job.prom")
    assert jobs.run(npy, tmp_path / "out", *flags) == 78
    assert "job.prom: No such file" in capsys.readouterr().err
    assert not list((tmp_path / "out" / "shards").iterdir())


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "manifest"])
def test_damaged_shard_is_made_again(jobs, npy, tmp_path, damage):
    output = tmp_path / "out"
    assert jobs.run(npy, output) == 0
    expected = jobs.content(output)
    shard = output / "shards" / "00002.parquet"
    data = shard.read_bytes()
    if damage == "flip":
        shard.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    elif damage == "cut":
        shard.write_bytes(data[:-1])
    elif damage == "gone":
        shard.unlink()
    else:
        shard.with_name("_00002.json").write_text("{}")
    assert jobs.run(npy, output) == 0
    assert jobs.content(output) == expected


def test_memory_does_not_grow_with_the_input(jobs, tmp_path):
    peaks = {}
    for rows in (20_000, 200_000):
        np.save(tmp_path / f"{rows}.npy", np.zeros((rows, 4, 4), np.uint8))
        code = (
            "import resource, sys; from latentd.__main__ import main; "
            "status = main(sys.argv[1:]); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"
        )
        flags = ("--shard-rows", 5000, "--batch-rows", 500, "--reconstruction", "raw")
        command = jobs.command(tmp_path / f"{rows}.npy", tmp_path / f"out{rows}", *flags)
        done = subprocess.run(
            [sys.executable, "-c", code, *command], **jobs.popen_arguments(), check=True
        )
        peaks[rows] = int(done.stdout.split()[-1])
    assert peaks[200_000] < peaks[20_000] * 1.1, peaks
