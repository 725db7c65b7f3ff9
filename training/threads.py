"""How many CPU threads torch uses for one operation: measured, because its default, a thread for
each core, makes small nets slower, and many times slower on a busy machine."""

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

_SECONDS: Final = 2.0  # of measuring, at most, if one step is short
_SECONDS_EACH: Final = 0.2  # for one number of threads
_STEPS: Final = 20  # timed for one number of threads, at most
_GAIN: Final = 0.9  # more threads must bring a step's time below this fraction
_WINDOW_SECONDS: Final = 10.0  # of steps: shorter windows are too noisy


class Choice(NamedTuple):
    """A number of threads and where it comes from."""

    number: int
    by: str  # in words
    milliseconds: Mapping[int, float] = MappingProxyType({})  # a step's, by number of threads


def default() -> int:
    """torch's own number, within the CPUs that this process may use: of quotas torch knows
    nothing. What OMP_NUM_THREADS says stays."""
    own = torch.get_num_threads()
    return own if from_environment() else min(own, machine.cpus())


def of_run(number: int) -> int:
    """The thread count that training measured, within the CPUs here. OMP_NUM_THREADS overrides it.

    number: Config.threads of the checkpoint; 0 where it has none.
    """
    if from_environment() or not number:
        return default()
    return min(number, machine.cpus())


def from_environment() -> bool:
    """Whether the person has chosen the number by a variable that torch reads."""
    return bool(os.environ.get("OMP_NUM_THREADS") or os.environ.get("MKL_NUM_THREADS"))


def measure(step: Callable[[], None]) -> Choice:
    """The fewest threads with which `step` is about as fast as with any other number.

    Tries all CPUs, then half of them, and so on, as long as there is time: a large net is slower
    with fewer, and then the first few numbers are enough. On a busy machine many threads may make
    a step slow, so what counts is its CPU time, divided by the number of threads.
    """
    began, times = time.perf_counter(), dict[int, float]()
    number = machine.cpus()
    if number == 1:
        return Choice(1, "the only CPU")
    while True:
        with using(number):
            step()  # starts the threads, and allocates
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
    """Let torch use `number` threads for one operation, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Contention:
    """Notices that this thread waits for a CPU: a context manager around each step on the CPU.

    The thread that trains is always busy, computing or waiting a moment for the threads that help
    it. Where its own CPU time is less than half of the time that passes, other work, or too many
    threads of its own, keeps it from the CPUs.
    """

    def __init__(self) -> None:
        self._seconds = self._cpu_seconds = 0.0

    def __enter__(self) -> None:
        self._began, self._cpu_began = time.perf_counter(), time.thread_time()

    def __exit__(self, *_: object) -> None:
        self._seconds += time.perf_counter() - self._began
        self._cpu_seconds += time.thread_time() - self._cpu_began

    def found(self) -> float | None:
        """How many times as long as it computes a step takes, if that is more than twice; None if
        not, or while too few seconds have passed."""
        if self._seconds < _WINDOW_SECONDS:
            return None
        ratio = self._seconds / max(self._cpu_seconds, 1e-9)
        self._seconds = self._cpu_seconds = 0.0
        return ratio if ratio > 2 else None


def _medians(step: Callable[[], None]) -> tuple[float, float]:
    """Seconds that a step takes, and seconds of CPU time, of all threads."""
    seconds, cpu_seconds = list[float](), list[float]()
    end = time.perf_counter() + _SECONDS_EACH
    while not seconds or (len(seconds) < _STEPS and time.perf_counter() < end):
        began, cpu_began = time.perf_counter(), time.process_time()
        step()
        seconds.append(time.perf_counter() - began)
        cpu_seconds.append(time.process_time() - cpu_began)
    return statistics.median(seconds), statistics.median(cpu_seconds)
