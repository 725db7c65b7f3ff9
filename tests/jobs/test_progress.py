"""What a job tells: the dry run, its progress, and a file of metrics."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import termios

from latentd.jobs.store import Store
from tests.support.processes import wait_until


def test_dry_run_prints_the_plan_and_writes_nothing(jobs, npy, tmp_path, capsys):
    assert jobs.run(npy, tmp_path / "out", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "100 rows in total, 5 shards of up to 24" in said
    assert "rows per second in one process" in said
    assert not (tmp_path / "out").exists()


def test_dry_run_reports_bad_rows(jobs, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "cut.png").write_bytes(b"")
    assert jobs.run(folder, tmp_path / "out", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "1 of 1 rows (100%) of this trial would be quarantined" in said
    assert "not a readable image file (first: row 0, cut.png)" in said
    assert "status 66" not in said
    assert jobs.run(folder, tmp_path / "out", "--dry-run", "--max-quarantined", "50%") == 0
    assert "would end with status 66" in capsys.readouterr().out


def test_finished_job_prints_no_rate(jobs, npy, tmp_path, capsys):
    half = ("--shard-index", 0, "--shard-count", 2)
    assert jobs.run(npy, tmp_path / "out", *half) == 0
    assert "52 rows in " in capsys.readouterr().out
    assert jobs.run(npy, tmp_path / "out", "--processes", 2) == 0
    said = capsys.readouterr().out
    assert "48 rows in " in said
    assert "52 others were finished already" in said
    assert jobs.run(npy, tmp_path / "out", "--processes", 2) == 0
    said = capsys.readouterr().out
    assert "All 100 rows were finished already" in said
    assert "per second" not in said


def test_job_lowers_its_priority(start_job, npy, tmp_path):
    output = tmp_path / "out"
    store = Store(output)
    with store.locked(0, wait=False):
        job = start_job(npy, output, "--niceness", 7)
        wait_until((output / "shards" / "_00004.json").exists, job)
        assert os.getpriority(os.PRIO_PROCESS, job.pid) >= 7
    job.communicate()
    store.close()
    assert job.returncode == 0


def test_url_as_output_is_rejected(jobs, npy, tmp_path, capsys):
    for flags in ((), ("--dry-run",)):
        assert jobs.run(npy, "memory://bucket/out", *flags) == 78
        assert "--output memory://bucket/out: must be a local" in capsys.readouterr().err


def test_terminal_and_metrics_file_show_progress(start_job, npy, tmp_path):
    output, metrics = tmp_path / "out", tmp_path / "job.prom"
    terminal, job_end = pty.openpty()
    fcntl.ioctl(job_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    store = Store(output)
    with store.locked(1, wait=False):
        job = start_job(npy, output, "--metrics-file", metrics, stderr=job_end)
        os.close(job_end)
        wait_until((output / "shards" / "_00004.json").exists, job)
        lines = metrics.read_text().splitlines()
    job.communicate()
    store.close()
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while read := os.read(terminal, 1 << 16):
            shown += read
    os.close(terminal)
    assert job.returncode == 0, shown
    assert re.search(rb" [1-9][\d.]+/100 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+k? rows/s\]", shown), shown
    (done,) = [line.split()[1] for line in lines if line.startswith("latentd_job_rows_done ")]
    assert 0 < float(done) < 100


def test_metrics_file_has_the_totals(jobs, npy, tmp_path):
    metrics = tmp_path / "job.prom"
    assert jobs.run(npy, tmp_path / "out", "--metrics-file", metrics) == 0
    lines = metrics.read_text().splitlines()
    assert "latentd_job_rows 100.0" in lines
    assert "latentd_job_rows_done 100.0" in lines
    assert "latentd_job_rows_quarantined 0.0" in lines
