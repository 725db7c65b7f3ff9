"""Logs a run's progress: a progress bar, one line per epoch on standard output and in log.jsonl,
and the same numbers for TensorBoard. Under torchrun, only the main process logs."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from tensorboardX import SummaryWriter
from tqdm import tqdm

from latentd.training import distributed

LOG: Final = "log.jsonl"
EVENTS: Final = "tensorboard"  # tensorboard --logdir OUT
_PARTS: Final = ("train", "validation")


class RunLogger:
    """The log of the run in a folder. It rewrites log and events from `history`, because the old
    files may be truncated."""

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
                disable=None if self.is_main else True,  # None: only on a terminal
            )
        )
        if self.is_main:
            self.file = self.stack.enter_context((self.out / LOG).open("w"))
            shutil.rmtree(self.out / EVENTS, ignore_errors=True)
            self.events = self.stack.enter_context(SummaryWriter(str(self.out / EVENTS)))
            self.log(self.header)
            for line in self.history:
                print(json.dumps(line), file=self.file)
                self._plot(line)
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
            self._plot(line)
        if "validation_elbo" in line:
            self.bar.set_postfix(validation_elbo=round(line["validation_elbo"], 2), refresh=False)

    def log(self, line: dict[str, Any]) -> None:
        """Write one JSON line to the log and to standard output."""
        if not self.is_main:
            return
        text = json.dumps(line, allow_nan=False)
        tqdm.write(text, file=sys.stdout)
        print(text, file=self.file, flush=True)

    def _plot(self, line: dict[str, Any]) -> None:
        """Combine train_elbo and validation_elbo into one plot, elbo. Other terms do the same."""
        for name, value in line.items():
            part, _, term = name.partition("_")
            if part in _PARTS:
                self.events.add_scalar(f"{term}/{part}", value, line["epoch"])
            elif isinstance(value, int | float) and name != "epoch":
                self.events.add_scalar(name, value, line["epoch"])
