"""The chosen number of threads changes no result, and a busy machine is reported."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentd.training import checkpoint, machine, threads
from latentd.training.threads import Contention, measure
from tests.support.runs import TINY, assert_same_run, lines

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        (lambda count: 0.002 * count, 1),  # each thread slows the others
        (lambda count: 0.01, 1),  # more do not help
        (lambda count: 0.16 / count, 8),  # more help in full
        (lambda count: 0.08 / min(count, 2), 2),
    ],
)
def test_fewest_of_the_fastest_thread_counts_is_chosen(
    seconds: Callable[[int], float], chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpus", lambda: 8)
    monkeypatch.setattr(threads, "_SECONDS_EACH", 0.1)
    before = torch.get_num_threads()
    choice = measure(lambda: time.sleep(seconds(torch.get_num_threads())))
    assert choice.number == chosen, choice
    assert list(choice.milliseconds) == [8, 4, 2, 1]
    assert torch.get_num_threads() == before


def test_large_net_is_not_measured_with_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few threads, it would take minutes."""
    monkeypatch.setattr(machine, "cpus", lambda: 8)
    monkeypatch.setattr(threads, "_SECONDS", 0.2)
    monkeypatch.setattr(threads, "_SECONDS_EACH", 0.01)

    def step() -> None:
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass

    assert list(measure(step).milliseconds) == [8]


def test_choice_is_logged_and_kept_and_changes_no_bit(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(machine, "cpus", lambda: 2)
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    assert cli("train", "--out", parts, *TINY, "--epochs", 2)[0] == 0
    told = lines(parts)[0]["threads"]
    assert told["chosen_by"] == "measurement"
    assert set(told["step_milliseconds"]) == {"1", "2"}
    number = told["number"]
    assert checkpoint.load(parts / "last.pt").config.threads == number
    assert cli("train", "--out", parts, "--resume", "--epochs", 4)[0] == 0
    assert lines(parts)[0]["threads"] == {
        "number": number,
        "cpus": 2,
        "chosen_by": "the checkpoint",
    }
    assert cli("train", "--out", whole, *TINY, "--threads", number)[0] == 0
    assert lines(whole)[0]["threads"]["chosen_by"] == "--threads"
    assert_same_run(parts, whole)


def test_threads_are_chosen_again_when_there_are_fewer_cpus(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, _, err = cli("train", "--out", tmp_path / "run", *TINY, "--threads", 64)
    assert status == 0
    assert "--threads 64 is more than the" in err
    monkeypatch.setattr(machine, "cpus", lambda: 1)
    monkeypatch.delenv("OMP_NUM_THREADS")
    status, _, err = cli("train", "--out", tmp_path / "run", "--resume", "--epochs", 5)
    assert status == 0
    assert "This run had 64 CPU threads and there are 1 CPUs here" in err
    assert lines(tmp_path / "run")[0]["threads"]["number"] == 1


def test_environment_variable_sets_the_threads(whole: Path) -> None:
    told = lines(whole)[0]["threads"]
    assert told["number"] == int(os.environ["OMP_NUM_THREADS"])
    assert "OMP_NUM_THREADS" in told["chosen_by"]


def test_other_work_on_the_cpus_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """This thread shares one CPU with four busy processes."""
    monkeypatch.setattr(threads, "_WINDOW_SECONDS", 1.0)
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})  # for this thread and its children
    hogs = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
        for _ in range(4)
    ]
    try:
        contention, end = Contention(), time.monotonic() + 60
        ratio = None
        while ratio is None and time.monotonic() < end:
            with contention:
                sum(range(10_000))
            ratio = contention.found()
        assert ratio is not None
        assert ratio > 2
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
        os.sched_setaffinity(0, allowed)


def test_computing_thread_is_not_contention(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test has its own clocks, because this machine can have other work."""
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(time, "thread_time", lambda: 0.6 * now)
    contention = Contention()
    for _ in range(20):
        with contention:
            now += 1
        assert contention.found() is None


def test_contention_is_reported_once(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Contention, "found", lambda self: 5.25)
    status, _, err = cli("train", "--out", tmp_path / "run", *TINY)
    assert status == 0
    assert err.count("Training waits for CPUs: steps take 5.2 times as long as they compute.") == 1


@pytest.mark.parametrize("enough", [10, 1000])
def test_too_few_steps_give_a_warning(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enough: int
) -> None:
    monkeypatch.setattr("latentd.training.train._FEW_STEPS", (10, enough))
    status, _, err = cli("train", "--out", tmp_path / "run", *TINY, "--batch-size", 512)
    assert status == 0
    words = (
        "The run has 12 steps, 3 in an epoch, which are too few to learn much. Use a smaller "
        "--batch-size (now 512), more --epochs (now 4), or more rows."
    )
    assert (words in err) == (enough == 1000)


def test_cpus_and_memory_are_limited_by_cgroups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "/proc/self/cgroup": "0::/pod/container\n",
        "/proc/meminfo": "MemAvailable:   99999999 kB\n",
        "/sys/fs/cgroup/pod/cpu.max": "150000 100000\n",
        "/sys/fs/cgroup/pod/container/cpu.max": "max 100000\n",
        "/sys/fs/cgroup/pod/memory.max": "8000000\n",
        "/sys/fs/cgroup/pod/memory.current": "5000000\n",
        "/sys/fs/cgroup/pod/memory.stat": "anon 1\ninactive_file 1000000\n",
        "/sys/fs/cgroup/pod/container/memory.max": "max\n",
    }
    monkeypatch.setattr(machine, "_text", lambda path: files.get(str(path), "").strip())
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert machine.cpus() == 2
    assert machine.memory() == 4_000_000
    files["/proc/self/cgroup"] = "5:memory:/job\n1:cpu,cpuacct:/job\n"
    files["/sys/fs/cgroup/memory/job/memory.limit_in_bytes"] = "3000000"
    files["/sys/fs/cgroup/memory/job/memory.usage_in_bytes"] = "1000000"
    files["/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us"] = "400000"
    files["/sys/fs/cgroup/cpu/job/cpu.cfs_period_us"] = "100000"
    assert machine.cpus() == 4
    assert machine.memory() == 2_000_000
    assert machine.format_bytes(2_000_000) == "2.0 MB"


@pytest.mark.parametrize(("saved", "cpus", "used"), [(1, 4, 1), (3, 2, 2)])
def test_of_run_returns_the_measured_number_up_to_the_cpus(
    saved: int, cpus: int, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads.machine, "cpus", lambda: cpus)
    assert threads.of_run(saved) == used
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads.of_run(saved) == threads.default()
