"""Child processes that end with the test that starts them, even if it fails."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

StartProcess = Callable[..., "subprocess.Popen[str]"]


@contextmanager
def running(command: Sequence[object], **arguments: Any) -> Iterator[subprocess.Popen[str]]:
    """A child process, with Popen's arguments. At the end of the block it is killed if it runs,
    with the processes it started, and its pipes are closed."""
    # Its pid names its group too, as long as one process of the group lives.
    with subprocess.Popen([*map(str, command)], process_group=0, **arguments) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def process_starter() -> Iterator[StartProcess]:
    """Starts processes as `running` does; all of them end with the block."""
    with ExitStack() as started:

        def start(command: Sequence[object], **arguments: Any) -> subprocess.Popen[str]:
            return started.enter_context(running(command, **arguments))

        yield start


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for what a process does. It is an error if the process ends before."""
    while not condition():
        # Polling without a pause would take the processor from the watched process.
        with suppress(subprocess.TimeoutExpired):
            status = process.wait(0.002)
            if not condition():
                raise AssertionError(f"it ended with status {status}: {process.communicate()}")
