"""What a run says while it goes on: a bar, a line for each epoch on standard output and in
log.jsonl. Under torchrun only the first process speaks."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from training import parallel

LOG: Final = "log.jsonl"


class Journal:
    """The log of the run in a folder, written anew from `history`: what was saved knows better
    than a log cut short."""

    def __init__(
        self,
        out: Path,
        header: dict[str, Any],
        history: list[dict[str, Any]],
        steps: int,
        done: int,
    ) -> None:
        self.out, self.header, self.history, self.steps, self.done = (
            out,
            header,
            history,
            steps,
            done,
        )

    def __enter__(self) -> Journal:
        self.speaks = parallel.first()
        self.stack = ExitStack()
        epochs = self.header["run"]["epochs"]
        self.bar = self.stack.enter_context(
            tqdm(
                desc="training",
                initial=len(self.history) * self.steps + self.done,
                total=epochs * self.steps,
                unit="step",
                mininterval=0.5,
                disable=not self.speaks,
            )
        )
        if self.speaks:
            self.log = self.stack.enter_context((self.out / LOG).open("w"))
            self.say(self.header)
            for line in self.history:
                print(json.dumps(line), file=self.log)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def step(self) -> None:
        """One more step is done."""
        self.bar.update()

    def epoch(self, line: dict[str, Any]) -> None:
        """One more epoch is done."""
        self.say(line)
        if "validation_elbo" in line:
            self.bar.set_postfix(validation_elbo=round(line["validation_elbo"], 2), refresh=False)

    def say(self, line: dict[str, Any]) -> None:
        """One JSON line, to the log and to standard output."""
        if not self.speaks:
            return
        text = json.dumps(line, allow_nan=False)
        tqdm.write(text, file=sys.stdout)
        print(text, file=self.log, flush=True)
