"""Reads log.jsonl behind a training and gives a tracker what is new."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from latentd.training import run_log
from latentd.training.trackers.tracker import Tracker

Open = Callable[[Path, dict[str, Any]], Tracker]


def follow(
    out: Path, open_run: Open, wakeups: Iterable[object], on_failure: Callable[[Exception], None]
) -> bool:
    """Track the run in `out` until `wakeups` ends. Returns whether the tracker has everything.

    wakeups: an item means that the log has grown; the end, that the training has ended. After a
    failure the next wake-up opens the run again and gives it the whole log.
    """
    with (out / run_log.FILE).open("rb") as log:
        follower = _Follower(out, log, open_run)

        def attempt(step: Callable[[], None]) -> bool:
            try:
                step()
            except Exception as error:  # libraries and services fail in any way
                follower.restart()
                on_failure(error)
                return False
            return True

        for _ in itertools.chain((None,), wakeups):
            attempt(follower.catch_up)
        return attempt(follower.end)


class _Follower:
    def __init__(self, out: Path, log: BinaryIO, open_run: Open) -> None:
        self.out, self.log, self.open_run = out, log, open_run
        self.restart()

    def restart(self) -> None:
        """Go back to the log's first line."""
        self.log.seek(0)
        self.tracker: Tracker | None = None
        self.finished = False

    def catch_up(self) -> None:
        """Give the tracker the lines that it has not seen."""
        for line in run_log.new_lines(self.log):
            if self.tracker is None:
                self.tracker = self.open_run(self.out, line)
            elif "epoch" in line:
                self.tracker.epoch(line["epoch"], run_log.metrics(line))
            else:
                pictures = sorted(self.out.glob("*.png"))
                self.tracker.result(line["best_epoch"], run_log.metrics(line), pictures)
                self.finished = True

    def end(self) -> None:
        """Give it the last lines and close it."""
        self.catch_up()
        if self.tracker:
            self.tracker.close(self.finished)
