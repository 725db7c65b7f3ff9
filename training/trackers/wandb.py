"""Weights & Biases: offline in OUT/wandb, for `wandb sync`, unless WANDB_MODE says otherwise."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import wandb

from latentd.training.trackers import known_run


class Run:
    """Offline, a resumed run is written from its beginning, because two parts of one run cannot
    be synchronized. Online, it continues after the last epoch that the server has."""

    def __init__(self, out: Path, header: dict[str, Any]) -> None:
        run = known_run.load(out, "wandb")
        if run is None:
            run = secrets.token_hex(4)
            known_run.save(out, "wandb", run)
        folder = Path(os.environ.get("WANDB_DIR", out))
        if os.environ["WANDB_MODE"] == "offline":
            for old in (folder / "wandb").glob(f"offline-run-*-{run}"):
                shutil.rmtree(old)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "latentd"),
            name=os.environ.get("WANDB_NAME", out.name),
            id=run,
            dir=str(folder),
            resume="allow",
            reinit="finish_previous",
            settings=wandb.Settings(console="off", silent=True, init_timeout=30),
        )
        self.run.config.update(
            header["run"] | {name: header[name] for name in header if name != "run"},
            allow_val_change=True,
        )
        self.next, self.last = self.run.step, 0  # the server has the steps before `next`

    def epoch(self, number: int, metrics: dict[str, float]) -> None:
        self.last = number
        if number >= self.next:
            self.run.log(metrics, step=number)

    def result(self, epoch: int, metrics: dict[str, float], pictures: list[Path]) -> None:
        self.run.summary.update(metrics)
        if self.last >= self.next:
            images = {path.stem: wandb.Image(str(path)) for path in pictures}
            self.run.log(images, step=self.last)

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)
