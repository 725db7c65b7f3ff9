"""The chosen number of threads changes no result, and a busy machine is reported."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentd.training import checkpoint, machine, threads
from latentd.training.threads import Contention, measure
from tests.support.runs import TINY, assert_same_run, lines

Cli = Callable[..., tuple[int, str, str]]


class Clock:
    """Time that passes only when a test says so: on a busy machine everything takes longer."""

    def __init__(self) -> None:
        self._seconds = self._cpu_seconds = 0.0

    def pass_by(self, seconds: float, cpu_seconds: float = 0.0) -> None:
        self._seconds += seconds
        self._cpu_seconds += cpu_seconds

    def perf_counter(self) -> float:
        return self._seconds

    def process_time(self) -> float:
        return self._cpu_seconds

    thread_time = process_time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the measurements."""
    clock = Clock()
    monkeypatch.setattr(threads, "time", clock)
    return clock


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
    seconds: Callable[[int], float], chosen: int, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_count", lambda: 8)
    before = torch.get_num_threads()
    choice = measure(lambda: clock.pass_by(seconds(torch.get_num_threads())))
    assert choice.number == chosen, choice
    assert list(choice.milliseconds) == [8, 4, 2, 1]
    assert torch.get_num_threads() == before


def test_large_net_is_not_measured_with_few_threads(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few threads, it would take minutes."""
    monkeypatch.setattr(machine, "cpu_count", lambda: 8)
    assert list(measure(lambda: clock.pass_by(2.0, 2.0)).milliseconds) == [8]


def test_choice_is_logged_and_kept_and_changes_no_bit(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(machine, "cpu_count", lambda: 2)
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
    monkeypatch.setattr(machine, "cpu_count", lambda: 2)
    status, _, err = cli("train", "--out", tmp_path / "run", *TINY, "--threads", 3)
    assert status == 0
    assert "--threads 3 is more than the" in err
    monkeypatch.setattr(machine, "cpu_count", lambda: 1)
    monkeypatch.delenv("OMP_NUM_THREADS")
    status, _, err = cli("train", "--out", tmp_path / "run", "--resume", "--epochs", 5)
    assert status == 0
    assert "This run had 3 CPU threads and there are 1 CPUs here" in err
    assert lines(tmp_path / "run")[0]["threads"]["number"] == 1


def test_environment_variable_sets_the_threads(whole: Path) -> None:
    told = lines(whole)[0]["threads"]
    assert told["number"] == int(os.environ["OMP_NUM_THREADS"])
    assert "OMP_NUM_THREADS" in told["chosen_by"]


def test_a_thread_that_waits_for_a_cpu_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread sleeps instead: its clocks show the same as when it waits for a CPU."""
    monkeypatch.setattr(threads, "_WINDOW_SECONDS", 0.1)
    contention = Contention()
    with contention:
        time.sleep(0.1)
    ratio = contention.found()
    assert ratio is not None
    assert ratio > 2


@pytest.mark.parametrize(("elapsed", "found"), [(1.9, None), (2.1, 2.1)])
def test_contention_is_elapsed_time_by_cpu_time(
    elapsed: float, found: float | None, clock: Clock
) -> None:
    contention = Contention()
    with contention:
        clock.pass_by(4 * elapsed, 4)
    assert contention.found() is None, "too short a time"
    with contention:
        clock.pass_by(16 * elapsed, 16)
    assert contention.found() == (found and pytest.approx(found))
