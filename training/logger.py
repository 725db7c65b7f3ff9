"""Logs a run's progress: a progress bar, one line per epoch on standard output and in log.jsonl,
and the same numbers for a tracker. Under torchrun, only the main process logs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from latentd.training import distributed, run_log
from latentd.training.trackers.background import tracking


class RunLogger:
    """The log of the run in a folder. It rewrites the log from `history`, because the old file may
    be truncated."""

    def __init__(
        self, out: Path, header: dict[str, Any], history: list[dict[str, Any]], steps: int
    ) -> None:
        """steps: the number of finished steps over all epochs."""
        self.out, self.header, self.history, self.steps = out, header, history, steps

    def __enter__(self) -> RunLogger:
        self.is_main = distributed.is_main_process()
        self.stack = ExitStack()
        self.bar = self.stack.enter_context(
            tqdm(
                desc="training",
                initial=self.steps,
                total=self.header["run"]["epochs"] * self.header["steps"],
                unit="step",
                mininterval=0.5,
                leave=None,  # it is removed if it stands below another bar
                disable=None if self.is_main else True,  # None: only on a terminal
            )
        )
        if self.is_main:
            self.file = self.stack.enter_context((self.out / run_log.FILE).open("w"))
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(self.file, fcntl.LOCK_SH)  # tells `latentd runs` that the run is on
            self.log(self.header)
            for line in self.history:
                print(json.dumps(line), file=self.file)
            self.file.flush()
            tracker = self.header["run"]["tracker"]
            self.wake = self.stack.enter_context(tracking(tracker, self.out, distributed.notice))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stack.__exit__(kind, error, trace)

    def step(self) -> None:
        """Record one finished step."""
        self.bar.update()

    def epoch(self, line: dict[str, Any]) -> None:
        """Record one finished epoch."""
        self.log(line)
        if self.is_main:
            self.wake()
        if "validation_elbo" in line:
            self.bar.set_postfix(validation_elbo=round(line["validation_elbo"], 2), refresh=False)

    def log(self, line: dict[str, Any]) -> None:
        """Write one JSON line to the log and to standard output."""
        if not self.is_main:
            return
        text = json.dumps(line, allow_nan=False)
        tqdm.write(text, file=sys.stdout)
        print(text, file=self.file, flush=True)
