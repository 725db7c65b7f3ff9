"""Measures how many CPU threads torch should use for one operation. Its default, one thread per
core, slows small nets down, many times on a busy machine."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final, NamedTuple

import torch

from latentd.training import machine

_SECONDS: Final = 2.0  # limit of the measurement if one step is short
_SECONDS_EACH: Final = 0.2  # for each number of threads
_STEPS: Final = 20  # limit of timed steps for each number of threads
_GAIN: Final = 0.9  # more threads must bring a step's time below this fraction
_WINDOW_SECONDS: Final = 10.0  # window of steps: shorter ones are too noisy


class Choice(NamedTuple):
    """A number of threads and its origin."""

    number: int
    by: str  # description of the origin
    milliseconds: Mapping[int, float] = MappingProxyType({})  # number of threads -> step time


def default() -> int:
    """torch's own number, limited to the CPUs that this process may use, because torch ignores
    quotas. OMP_NUM_THREADS overrides it."""
    own = torch.get_num_threads()
    return own if from_environment() else min(own, machine.cpu_count())


def of_run(number: int) -> int:
    """The thread count that training measured, within the CPUs here. OMP_NUM_THREADS overrides it.

    number: Config.threads of the checkpoint; 0 if it has none.
    """
    if from_environment() or not number:
        return default()
    return min(number, machine.cpu_count())


def from_environment() -> bool:
    """Whether the user set the number with an environment variable that torch reads."""
    return bool(os.environ.get("OMP_NUM_THREADS") or os.environ.get("MKL_NUM_THREADS"))


def measure(step: Callable[[], None]) -> Choice:
    """The smallest number of threads with which `step` is about as fast as with any other number.

    Tries all CPUs, then half of them, and so on, while time remains. A large net is slower with
    fewer threads, so the first few numbers suffice. On a busy machine, many threads may slow a
    step down. So the measure is a step's CPU time, divided by the number of threads.
    """
    began, times = time.perf_counter(), dict[int, float]()
    number = machine.cpu_count()
    if number == 1:
        return Choice(1, "the only CPU")
    while True:
        with using(number):
            step()  # starts the threads and allocates memory
            times[number], cpu_seconds = _medians(step)
        if number == 1:
            break
        left = _SECONDS - (time.perf_counter() - began)
        number = number // 2 if left > 0 else 1
        if 2 * cpu_seconds / number > max(left, _SECONDS / 4):
            break
    fastest = min(times.values())
    chosen = min(n for n, seconds in times.items() if seconds * _GAIN <= fastest)
    return Choice(chosen, "measurement", {n: round(1e3 * s, 3) for n, s in times.items()})


@contextmanager
def using(number: int) -> Iterator[None]:
    """Let torch use `number` threads for one operation, then restore the previous number."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Contention:
    """Detects that this thread waits for a CPU. Use it as a context manager around each CPU step.

    The training thread always computes, or waits briefly for its helper threads. If its CPU time is
    less than half of the elapsed time, it does not get the CPUs. Either other work or too many
    threads of its own use them.
    """

    def __init__(self) -> None:
        self._seconds = self._cpu_seconds = 0.0

    def __enter__(self) -> None:
        self._began, self._cpu_began = time.perf_counter(), time.thread_time()

    def __exit__(self, *_: object) -> None:
        self._seconds += time.perf_counter() - self._began
        self._cpu_seconds += time.thread_time() - self._cpu_began

    def found(self) -> float | None:
        """The ratio of a step's elapsed time to its CPU time, if it is above 2. None if it is not,
        or if too few seconds have passed."""
        if self._seconds < _WINDOW_SECONDS:
            return None
        ratio = self._seconds / max(self._cpu_seconds, 1e-9)
        self._seconds = self._cpu_seconds = 0.0
        return ratio if ratio > 2 else None


def _medians(step: Callable[[], None]) -> tuple[float, float]:
    """The median elapsed seconds of a step, and the median CPU seconds over all threads."""
    seconds, cpu_seconds = list[float](), list[float]()
    end = time.perf_counter() + _SECONDS_EACH
    while not seconds or (len(seconds) < _STEPS and time.perf_counter() < end):
        began, cpu_began = time.perf_counter(), time.process_time()
        step()
        seconds.append(time.perf_counter() - began)
        cpu_seconds.append(time.process_time() - cpu_began)
    return statistics.median(seconds), statistics.median(cpu_seconds)
