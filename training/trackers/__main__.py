"""The process of a tracker: `python -m latentd.training.trackers NAME OUT`, from background.py."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from latentd.training.trackers.background import FINISH_SECONDS, opener, reason
from latentd.training.trackers.following import follow


def main(name: str, out: Path) -> int:
    """Track until standard input ends. Returns the exit status: 1 if the tracker lacks something.

    Whatever a library prints goes to standard error, which is OUT/tracker.log.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the training ends this process
    report = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def on_failure(error: Exception) -> None:
        traceback.print_exception(error)
        with contextlib.suppress(BrokenPipeError):  # the training was killed
            os.write(report, f"{reason(error)}\n".encode())

    def wakeups() -> Iterator[None]:
        while os.read(sys.stdin.fileno(), 1 << 16):
            yield
        # The training may be gone: no tracker outlives it for long.
        signal.alarm(round(FINISH_SECONDS))

    return 0 if follow(out, opener(name), wakeups(), on_failure) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
