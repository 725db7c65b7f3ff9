"""Inputs, bundles, options or plans that change: a job notices, and says which."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from latentd.jobs import worker
from latentd.jobs.store import Store
from latentd.readers import verified
from tests.support.processes import wait_until


def test_changed_input_is_rejected(jobs, npy, x, tmp_path, capsys):
    output = tmp_path / "out"
    assert jobs.run(npy, output, "--shard-index", 0, "--shard-count", 2) == 0
    before = jobs.content(output)
    np.save(npy, x[::-1])
    assert jobs.run(npy, output) == 78
    assert f"inputs added, removed or changed: {npy}" in capsys.readouterr().err
    assert jobs.content(output) == before
    np.save(npy, x)  # new times, same bytes
    assert jobs.run(npy, output) == 0


def test_input_that_changes_during_the_job_gives_no_success(start_job, npy, x, tmp_path):
    output = tmp_path / "out"
    store = Store(output)
    with store.locked(0, wait=False):
        job = start_job(npy, output)
        wait_until((output / "shards" / "_00004.json").exists, job)
        np.save(npy, x[::-1])
    _, said = job.communicate()
    store.close()
    assert job.returncode == 65, said
    assert "changed while the job ran" in said
    assert not (output / "_SUCCESS").exists()


def rewrite(path: Path, rows: np.ndarray) -> None:
    """Replace an array in place, and set the file's time of modification back."""
    before = path.stat()
    np.save(path, rows)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def at_shard(monkeypatch, index: int, before=lambda: None, after=lambda: None) -> None:
    """Call `before` before one shard is made, and `after` after it."""
    make = worker.make_shard

    def watched(plan, number, *rest):
        if number == index:
            before()
        results = make(plan, number, *rest)
        if number == index:
            after()
        return results

    monkeypatch.setattr(worker, "make_shard", watched)


def test_rewritten_input_with_restored_times_is_detected(jobs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(verified, "BLOCK", 4096)  # as if the file had many blocks
    rows = np.random.default_rng(0).integers(0, 256, (5000, 4, 4), np.uint8)
    npy = tmp_path / "x.npy"
    np.save(npy, rows)
    flags = ("--shard-rows", 1000, "--batch-rows", 500)
    assert jobs.run(npy, tmp_path / "whole", *flags) == 0
    with monkeypatch.context() as meanwhile:
        at_shard(meanwhile, 2, before=lambda: rewrite(npy, rows[::-1]))
        assert jobs.run(npy, tmp_path / "out", *flags) == 65
    assert "x.npy changed while the job ran: its bytes" in capsys.readouterr().err
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert jobs.run(npy, tmp_path / "out", *flags) == 78  # the inputs are not the plan's
    rewrite(npy, rows)
    assert jobs.run(npy, tmp_path / "out", *flags) == 0
    assert jobs.table(tmp_path / "out").equals(jobs.table(tmp_path / "whole"))


def test_input_rewritten_after_the_last_read_is_detected(
    jobs, npy, x, tmp_path, monkeypatch, capsys
):
    at_shard(monkeypatch, 4, after=lambda: rewrite(npy, x[::-1]))
    assert jobs.run(npy, tmp_path / "out") == 65
    assert "so the results do not match the input" in capsys.readouterr().err
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_temporarily_replaced_image_is_quarantined(jobs, x, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    for number, row in enumerate(x[:60]):
        Image.fromarray(row).save(folder / f"{number:02}.png")
    picture = folder / "50.png"
    content = picture.read_bytes()
    at_shard(
        monkeypatch,
        2,
        before=lambda: Image.fromarray(x[99]).save(picture),
        after=lambda: picture.write_bytes(content),
    )
    assert jobs.run(folder, tmp_path / "out") == 0
    reasons = jobs.quarantine(tmp_path / "out")
    assert reasons == {"50.png": "the file changed after the job was planned"}


def test_plan_has_the_checksums_of_its_inputs(jobs, npy, tmp_path):
    assert jobs.run(npy, tmp_path / "out") == 0
    (entry,) = json.loads((tmp_path / "out" / "plan.json").read_text())["inputs"]
    assert entry["sha256"] == hashlib.sha256(npy.read_bytes()).hexdigest()
    (tmp_path / "out" / "plan.sums").unlink()
    (tmp_path / "out" / "shards" / "00001.parquet").unlink()
    assert jobs.run(npy, tmp_path / "out") == 0  # the checksums are computed again


def test_plan_of_an_older_release_is_rejected(jobs, npy, tmp_path, capsys):
    assert jobs.run(npy, tmp_path / "out") == 0
    plan = tmp_path / "out" / "plan.json"
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"format": 2}))
    assert jobs.run(npy, tmp_path / "out") == 78
    assert "plan.json has format 2; this release reads 4" in capsys.readouterr().err


def test_other_bundle_is_rejected(jobs, npy, tmp_path, publish_toy, capsys):
    root = tmp_path / "bundles"
    publish_toy(root)
    newest = type(jobs)(root / "toy")
    assert newest.run(npy, tmp_path / "out", "--shard-index", 0, "--shard-count", 2) == 0
    publish_toy(root, levels=100)
    assert newest.run(npy, tmp_path / "out") == 78
    assert "bundle toy version 1" in capsys.readouterr().err
    assert type(jobs)(root / "toy" / "1").run(npy, tmp_path / "out") == 0


def test_other_options_are_rejected(jobs, npy, tmp_path, capsys):
    assert jobs.run(npy, tmp_path / "out") == 0
    assert jobs.run(npy, tmp_path / "out", "--draw") == 78
    assert "draw False -> True" in capsys.readouterr().err
    assert jobs.run(npy, tmp_path / "out", "--shard-rows", 25) == 78
    assert "shard rows 24 -> 25" in capsys.readouterr().err


def test_damaged_bundle_is_rejected_before_the_output_is_created(
    jobs, npy, tmp_path, publish_toy, capsys
):
    folder = publish_toy(tmp_path / "bundles")
    data = bytearray((folder / "encoder.onnx").read_bytes())
    data[-1] ^= 1
    (folder / "encoder.onnx").write_bytes(data)
    assert type(jobs)(folder).run(npy, tmp_path / "out") == 78
    assert "sha256" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
