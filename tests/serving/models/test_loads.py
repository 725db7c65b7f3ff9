"""Load markers, shared trial results, and the memory limit of loads."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from latentd.errors import BundleError
from latentd.metrics import Metrics
from latentd.models import trial_results
from latentd.models.load_markers import LoadMarkers
from latentd.models.loads import LoadCancelled
from latentd.models.profile import MeasuredProfile, ModelProfile, SizeProfile
from latentd.models.rejected import RejectedVersions
from latentd.models.trial_results import TrialResult, TrialResults
from latentd.runtime import memory
from latentd.runtime.profiling import BatchTiming

ONE = MeasuredProfile(
    10, 2, 2, [SizeProfile((4, 4), 16, [BatchTiming(1, 0.5), BatchTiming(2, 0.75)])]
)
RESULT = TrialResult("sha256:1", ModelProfile(ONE, ONE))
GIB = 1 << 30

DIES = """
import os, sys
from latentd.models import trial_results
from latentd.models.load_markers import LoadMarkers
with LoadMarkers(sys.argv[1]).mark("key"):
    os._exit(1)
"""


def die_in_a_load(folder: Path) -> None:
    subprocess.run([sys.executable, "-c", DIES, str(folder)], check=False)


def test_crashes_are_counted_until_a_load_ends(tmp_path):
    markers = LoadMarkers(str(tmp_path))
    assert markers.crashes("key") == 0
    for count in (1, 2):
        die_in_a_load(tmp_path)
        assert markers.crashes("key") == count
    assert markers.crashes("another") == 0

    def give_up() -> None:
        assert markers.crashes("key") == 2, "a load that goes on has not ended anything"
        raise LoadCancelled

    with pytest.raises(LoadCancelled), markers.mark("key"):
        give_up()
    assert markers.crashes("key") == 2, "a load that was given up has shown nothing"
    with markers.mark("key"):
        pass
    assert markers.crashes("key") == 0
    die_in_a_load(tmp_path)
    with pytest.raises(BundleError), markers.mark("key"):
        raise BundleError("golden", "No.")
    assert not list(tmp_path.iterdir())


def test_markers_use_the_first_writable_folder(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "file" / "cannot"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    with LoadMarkers().mark("key"):
        assert len(list((tmp_path / "home" / "latentd").iterdir())) == 1
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "service"))
    with LoadMarkers().mark("key"):
        assert len(list((tmp_path / "service").iterdir())) == 1
    assert not caplog.records
    with LoadMarkers(str(tmp_path / "file" / "cannot")).mark("key"):
        assert "--state" in caplog.text


def test_result_is_computed_once_and_shared(tmp_path):
    found: list[str] = []

    def find() -> TrialResult:
        found.append("found")
        return RESULT

    workers = [TrialResults(tmp_path), TrialResults(tmp_path)]
    assert [one.get("key", find, lambda: None) for one in workers] == [RESULT, RESULT]
    assert found == ["found"]
    alone = TrialResults(None)
    assert alone.get("key", find, lambda: None) == alone.get("key", find, lambda: None)
    assert len(found) == 3


def test_shared_folder_is_removed_at_the_end(tmp_path):
    (tmp_path / "trials-left").mkdir()
    with (
        trial_results.shared_folder(str(tmp_path)) as one,
        trial_results.shared_folder(str(tmp_path)) as other,
    ):
        assert one != other
        assert set(tmp_path.iterdir()) == {one, other}
        shutil.rmtree(one)  # as a cleaner of temporary files does
        assert TrialResults(one).get("key", lambda: RESULT, lambda: None) == RESULT
    assert not list(tmp_path.iterdir())


def test_rejections_are_shared_except_memory(tmp_path):
    def fail(error: Exception):
        def find() -> TrialResult:
            raise error

        return find

    for error in (
        LoadCancelled(),
        BundleError("memory", "No."),
        BundleError("timeout", "Too long."),
    ):
        with pytest.raises(type(error)):
            TrialResults(tmp_path).get("key", fail(error), lambda: None)
    with pytest.raises(BundleError, match="Too long") as refusal:
        TrialResults(tmp_path).get("key", lambda: RESULT, lambda: None)
    assert refusal.value.reason == "timeout"


def test_lack_of_memory_is_retried_later():
    now = 0.0
    rejected = RejectedVersions(Metrics(CollectorRegistry()), clock=lambda: now)
    rejected.add("toy", 1, BundleError("memory", "Too large."), ())
    rejected.add("toy", 2, BundleError("golden", "Wrong."), ())
    now = 599.0
    assert rejected.is_known("toy", 1, ())
    now = 600.0
    assert not rejected.is_known("toy", 1, ())
    assert rejected.is_known("toy", 2, ())


def test_worker_waits_for_the_other_until_cancelled(tmp_path):
    at_it, done = threading.Event(), threading.Event()

    def find() -> TrialResult:
        at_it.set()
        assert done.wait(60)
        return RESULT

    first = threading.Thread(target=TrialResults(tmp_path).get, args=("key", find, lambda: None))
    first.start()
    assert at_it.wait(60)

    def give_up() -> None:
        raise LoadCancelled

    with pytest.raises(LoadCancelled):
        TrialResults(tmp_path).get("key", find, give_up)
    assert TrialResults(tmp_path).get("key", pytest.fail, done.set) == RESULT
    first.join()


def group(folder: Path, names: tuple[str, str, str], limit: str, used: int, cached: int) -> None:
    """A control group's files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(limit)
    (folder / names[1]).write_text(str(used))
    (folder / "memory.stat").write_text(f"anon 7\n{names[2]} {cached}\n")


V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def test_available_memory_respects_control_groups(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    assert memory.available_bytes(proc, groups) == sys.maxsize, "another system"
    (proc / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:  {8 * GIB >> 10} kB\n")
    assert memory.available_bytes(proc, groups) == 8 * GIB
    group(groups, V2, "max\n", GIB, 0)
    assert memory.available_bytes(proc, groups) == 8 * GIB
    group(groups, V2, str(4 * GIB), 3 * GIB, GIB)
    assert memory.available_bytes(proc, groups) == 2 * GIB
    (proc / "self" / "cgroup").write_text("0::/system.slice/latentd.service\n")
    group(groups / "system.slice" / "latentd.service", V2, str(2 * GIB), GIB, 0)
    assert memory.available_bytes(proc, groups) == GIB
    (proc / "self" / "cgroup").write_text("3:cpu,cpuacct:/x\n4:memory:/docker/1\n")
    group(groups / "memory" / "docker" / "1", V1, str(GIB), GIB // 2, 0)
    assert memory.available_bytes(proc, groups) == GIB // 2
    assert memory.private_bytes() > 1 << 20
    assert memory.private_bytes(2**30) == 0
