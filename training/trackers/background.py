"""Runs a tracker beside a training: in a thread, or in a process of its own.

The training only says that its log has grown, which never waits. So a tracker that fails, hangs
or crashes leaves the training as it is. A signal is handled in the main thread, and Ctrl-C goes
to the terminal's processes: neither can come in the middle of a tracker's work.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from latentd.training import trackers
from latentd.training.trackers.following import Open, follow
from latentd.training.trackers.tracker import Tracker

LOG: Final = "tracker.log"
FINISH_SECONDS: Final = 60.0  # a tracker may take at the end of a run
STOP_SECONDS: Final = 10.0  # and of one that was stopped

Wake = Callable[[], None]
Say = Callable[[str], None]


def opener(name: str) -> Open:
    """What opens a run of this tracker. It imports the tracker's library then, so that a library
    that is broken is a failure like all others."""

    def open_run(out: Path, header: dict[str, Any]) -> Tracker:
        run: Tracker = _module(name).Run(out, header)
        return run

    return open_run


def _module(name: str) -> Any:
    return importlib.import_module(f"latentd.training.trackers.{name}")


@contextlib.contextmanager
def tracking(name: str, out: Path, say: Say) -> Iterator[Wake]:
    """Track the run in `out` inside the block. Yields what to call when log.jsonl has grown.

    say: prints a notice for the user. It gets at most one, about the first failure.
    """
    if name == trackers.NONE:
        yield lambda: None
        return
    host_kind = _Process if trackers.KINDS[name].own_process else _Thread
    try:
        host = host_kind(name, out, _once(say))
    except (ImportError, OSError, RuntimeError) as error:  # the last two: no more processes
        say(_failed(name, out, reason(error)))
        yield lambda: None
        return
    try:
        yield host.wake
    except BaseException:
        host.close(STOP_SECONDS)
        raise
    host.close(FINISH_SECONDS)


def _once(say: Say) -> Say:
    said = False

    def say_once(text: str) -> None:
        nonlocal said
        if not said:
            said = True
            say(text)

    return say_once


def _failed(name: str, out: Path, reason: str) -> str:
    return (
        f"--tracker {name} failed: {reason} Training goes on; the tracker is tried again after "
        f"each epoch. What it still lacks at the end, `latentd train --out {out} --resume` sends."
    )


def _hangs(name: str, out: Path, seconds: float) -> str:
    return (
        f"--tracker {name} did not finish within {seconds:.0f} seconds and was left. "
        f"`latentd train --out {out} --resume` sends it what it lacks."
    )


class _Thread:
    def __init__(self, name: str, out: Path, say: Say) -> None:
        self.name, self.out, self.say = name, out, say
        _module(name)  # imported here: two threads that import at once may meet half a module
        self.wakeups: queue.SimpleQueue[bool] = queue.SimpleQueue()  # its put never waits
        self.thread = threading.Thread(target=self._follow, name=f"tracker {name}", daemon=True)
        self.thread.start()

    def _follow(self) -> None:
        follow(self.out, opener(self.name), iter(self.wakeups.get, False), self._on_failure)

    def _on_failure(self, error: Exception) -> None:
        self.say(_failed(self.name, self.out, reason(error)))

    def wake(self) -> None:
        self.wakeups.put(True)

    def close(self, seconds: float) -> None:
        self.wakeups.put(False)
        self.thread.join(seconds)
        if self.thread.is_alive():
            self.say(_hangs(self.name, self.out, seconds))


class _Process:
    """`python -m latentd.training.trackers`. A byte on its standard input wakes it; its standard
    output has one line for each failure."""

    def __init__(self, name: str, out: Path, say: Say) -> None:
        self.name, self.out, self.say = name, out, say
        with (out / LOG).open("w") as log:
            self.process = subprocess.Popen(  # noqa: S603 (our module)
                [sys.executable, "-m", "latentd.training.trackers", name, os.path.abspath(out)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**trackers.KINDS[name].environment, **os.environ},
                start_new_session=True,
            )
        assert self.process.stdin
        assert self.process.stdout
        self.input, self.output = self.process.stdin, self.process.stdout
        os.set_blocking(self.input.fileno(), False)
        os.set_blocking(self.output.fileno(), False)

    def wake(self) -> None:
        # A full pipe has a wake-up in it. A closed one is of a process that has ended.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self.input.fileno(), b"\n")
        self._listen()

    def close(self, seconds: float) -> None:
        self.input.close()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # what it started too
            self.process.wait()
            self.say(_hangs(self.name, self.out, seconds))
        self._listen()
        self.output.close()

    def _listen(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if text := os.read(self.output.fileno(), 1 << 16).decode(errors="replace"):
                self.say(_failed(self.name, self.out, text.splitlines()[0]))
        if self.process.poll():
            status = f"its process ended with status {self.process.returncode}; see {LOG}."
            self.say(_failed(self.name, self.out, status))


def reason(error: Exception) -> str:
    """An error in one line that is not too long."""
    first = textwrap.shorten((str(error) or type(error).__name__), 160, placeholder=" ...")
    return first if first.endswith(".") else f"{first}."
